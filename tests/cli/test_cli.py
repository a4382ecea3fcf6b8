"""The verbs do what they say."""

from __future__ import annotations

import html
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamaseek.checkpoints.hf import load_model
from llamaseek.cli import conversation
from llamaseek.cli.conversation import ChatSession
from llamaseek.engine.engine import Engine
from llamaseek.engine.request import SamplingParams
from llamaseek.errors import UserError
from llamaseek.recipe.schema import Recipe
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import train
from tests.cli.run import Cli, process
from tests.serve.spoken import Speech, spoken_service
from tests.text.styles import made, tokenizer
from tests.train.tiny import LLAMA_SIZES, recipe

VERBS = ("quickstart", "tokenize", "pretrain", "sft", "dpo", "generate", "chat", "report")


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    done = process("--help")
    assert done.code == 0 and all(verb in done.out for verb in VERBS)
    code = (
        "import sys, llamaseek.cli.main; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    assert cli(verb, "--help").code == 0


def test_dry_run_prints_the_resolved_recipe(cli: Cli) -> None:
    done = cli("pretrain", "quickstart-llama3", "train.lr=1e-3", "--dry-run")
    assert done.code == 0 and "lr: 0.001" in done.out


def test_tokenize_prints_the_table(cli: Cli, model: Path) -> None:
    done = cli("tokenize", "The red fox", "-t", str(model))
    assert done.code == 0 and "token" in done.out and "The" in done.out
    ids = cli("tokenize", "The red fox", "-t", str(model), "--ids").out.split()
    tokenizer = Tokenizer.load(model)
    assert tokenizer.decode([int(i) for i in ids]) == "The red fox"
    chat = cli("tokenize", "<|eot_id|>", "-t", str(model), "--chat", "--ids").out.split()
    assert chat.count(str(tokenizer.eot_id)) == 1  # the turn's own; the text's stays text


def test_generate_is_the_same_each_time(cli: Cli, model: Path) -> None:
    words = ("generate", str(model), "The red fox", "--max-tokens", "8", "--temperature", "1")
    first = cli(*words)
    assert first.code == 0 and first.out.startswith("The red fox")
    assert first.out == cli(*words).out
    assert first.out != cli(*words, "--seed", "1").out
    assert cli("generate", str(model), "Hello", "--chat", "--max-tokens", "4").code == 0


def test_report_of_a_run(cli: Cli, model: Path) -> None:
    done = cli("report", str(model.parent))
    page = Path(done.out.strip())
    assert page.name == "report.html" and "<svg" in page.read_text()


def test_chat_answers_from_a_pipe(model: Path) -> None:
    script = "/help\nhello\n/settings\n/nonsense\n/temperature hot\n/quit\nnever reached\n"
    done = process("chat", str(model), "--max-tokens", "5", stdin=script)
    assert done.code == 0
    assert "/reset" in done.out and "temperature 0.0" in done.out
    assert "error: command '/nonsense' is unknown" in done.err
    assert "error: /temperature: 'hot' is not a number" in done.err


@pytest.fixture
def talk(model: Path) -> ChatSession:
    tokenizer = Tokenizer.load(model)
    params = SamplingParams(max_tokens=4)
    return ChatSession(Engine(load_model(model), tokenizer), tokenizer, params)


def test_a_conversation_keeps_its_turns(talk: ChatSession) -> None:
    answer = "".join(talk.ask("hello"))
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"]
    assert talk.command("/retry") is None
    assert "".join(talk.answer()) == answer
    talk.command("/system be brief")
    assert talk.system == "be brief" and talk.turns == []
    talk.command("/temperature 0.5")
    talk.command("/max_tokens 9")
    assert (talk.sampling.temperature, talk.sampling.max_tokens) == (0.5, 9)
    with pytest.raises(conversation.Quit):
        talk.command("/quit")
    with pytest.raises(UserError, match="no message"):
        talk.command("/retry")
    with pytest.raises(UserError, match="top_p"):
        talk.command("/top_p 2")


def test_a_long_conversation_forgets_its_oldest_turns(talk: ChatSession) -> None:
    for number in range(12):
        "".join(talk.ask(f"message number {number}, with some words in it"))
    assert len(talk.turns) < 24
    with pytest.raises(UserError, match="context"):
        "".join(talk.ask("word " * 400))


def test_a_conversation_keeps_reasoning_apart() -> None:
    """The template opens it, so that the answer begins inside of it."""
    ours = made("deepseek_v3.1", tokenizer("deepseek_v3.1").chat_templates)
    ours.use_chat_template(kwargs={"thinking": True})
    engine = spoken_service(Speech("I add.\n</think>\n\n4", ours)).engine
    talk = ChatSession(engine, ours, SamplingParams(max_tokens=40, stop_token_ids=ours.stop_ids))
    assert "".join(talk.ask("2+2?")) == "I add.\n</think>\n\n4"
    answer = {"role": "assistant", "content": "4", "reasoning_content": "I add."}
    assert talk.turns == [{"role": "user", "content": "2+2?"}, answer]
    assert "I add." not in ours.decode(talk._prompt())


def test_stop_texts_end_answers(talk: ChatSession) -> None:
    talk.command("/max_tokens 20")
    talk.command("/temperature 1")
    talk.command("/seed 0")
    whole = "".join(talk.ask("hello"))
    stop = whole.split()[-1]
    talk.command("/reset")
    assert talk.command(f"/stop {stop}") == f"stops: {[stop]}"
    assert "".join(talk.ask("hello")) == whole[: whole.index(stop)]
    assert talk.command("/stop") == "no stop texts"


def test_generate_tells_how_drafts_fared(cli: Cli, model: Path) -> None:
    words = ("generate", str(model), "The red fox", "--max-tokens", "12")
    plain = cli(*words, "--stats")
    assert "12 tokens" in plain.err and "1.00 tokens per forward" in plain.err
    for source in ("lookup", str(model)):
        done = cli(*words, "--stats", "--speculate", source, "--draft-tokens", "3")
        assert done.out == plain.out
    assert "100.0% of" in done.err and "drafts accepted" in done.err
    refused = cli(*words, "--speculate", "mtp")
    assert refused.code == 2 and "multi-token module" in refused.err


def test_quickstart_at_smoke_size(cli: Cli, tmp_path: Path) -> None:
    for family in ("llama3", "deepseek_v3"):
        out = tmp_path / family
        began = time.time()
        done = cli("quickstart", "--family", family, "--smoke", "--out", str(out))
        assert done.code == 0, done.err
        figures = json.loads((out / "figures.json").read_text())
        assert 0 < figures["seconds"] <= time.time() - began
        assert set(figures["task_exact_match"]) == {"before", "after"}
        assert len(figures["task_exact_match_after_dpo"]) == 5
        assert ("mtp_acceptance" in figures) == (family == "deepseek_v3")
        page = (out / "report.html").read_text()
        assert "You are to complete the following sentence" in page
        assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
        last = done.out.replace("\n", "")
        assert f"llamaseek chat {out / 'dpo' / 'model'}" in last
        assert f"llamaseek serve {out / 'dpo' / 'model'}   then open http://127.0.0.1:8000" in last


def test_files_take_the_place_of_what_a_recipe_makes() -> None:
    for name, kept in (("study", "mix"), ("quickstart-sft", "rows")):
        before, after, none = (
            Recipe.load(name, files).data.model_dump()
            for files in ([], ["data.sources=[mine.jsonl]"], ["data.sources=[]"])
        )
        assert before[kept] and not before["sources"]
        assert after == {**before, kept: {}, "sources": ["mine.jsonl"]}
        assert none == before


def test_a_retry_draws_another_answer_and_a_greedy_one_the_same(talk: ChatSession) -> None:
    talk.command("/temperature 2")
    "".join(talk.ask("hello"))
    seeds = [talk.sampling.seed]
    for _ in range(2):
        assert talk.command("/retry") is None
        "".join(talk.answer())
        seeds.append(talk.sampling.seed)
    assert seeds == [None, 1, 2]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model that knows four sentences, in a folder with a blank in its name."""
    folder = tmp_path_factory.mktemp("a masked model")
    lines = [f"The red {animal} chased a ball." for animal in ("fox", "cat", "dog", "hen")]
    (folder / "text.txt").write_text("\n\n".join(lines * 200))
    changes = {
        "train__objective": "masked",
        "train__steps": 150,
        "train__lr": 1e-2,
        "train__batch": 16,
        "tokenizer__vocab_size": 290,
        "train__eval_every": 150,
    }
    sizes = {**LLAMA_SIZES, "initializer_range": 0.15}
    made = recipe(folder, data={"sources": [str(folder / "text.txt")], "length": 32},
                  model={"config": sizes}, **changes)  # fmt: skip
    return train(build_job(made)).path / "model"


def test_fill_prints_the_likely_words_of_a_masked_model(cli: Cli, masked: Path) -> None:
    done = cli("fill", str(masked), "The red [MASK] chased a ball.", "--top", "4")
    assert done.code == 0, done.err
    title, *rows = done.out.splitlines()
    assert title == "[MASK]:" and len(rows) == 4
    shares = [float(row.split("%")[0]) for row in rows]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.1
    two = cli("fill", str(masked), "The [MASK] fox chased a [MASK].").out
    assert "[MASK] 1:" in two and "[MASK] 2:" in two
    assert "red" in two.split("[MASK] 2:")[0] and "ball" in two.split("[MASK] 2:")[1]


def test_a_masked_model_is_refused_by_name_where_text_is_generated(
    cli: Cli, masked: Path, model: Path
) -> None:
    for words in (("generate", masked, "The red"), ("chat", masked), ("serve", masked)):
        done = cli(*map(str, words))
        assert done.code == 2, words
        assert done.err.startswith(f"error: {masked}: is a masked language model")
        assert f"llamaseek fill '{masked}' TEXT" in done.err
    done = cli("sft", "alpaca-sft", f"model.init_from={masked}", "data.sources=[x.jsonl]")
    assert done.code == 2 and "model.init_from" in done.err and "masked" in done.err
    done = cli("fill", str(model), "The [MASK]")
    assert done.code == 2 and "is not a masked language model" in done.err
    done = cli("fill", str(masked), "no place")
    assert done.code == 2 and "has no [MASK]" in done.err


def test_printed_commands_are_quoted(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "with space"
    (tmp_path / "text.txt").write_text("a line of text to learn\n\n" * 200)
    words = ("pretrain", "tiny-shakespeare", f"data.sources=[{tmp_path / 'text.txt'}]",
             f"out={out}", "train.steps=1", "data.length=32", "tokenizer.vocab_size=280",
             "train.batch=2", "data.mix={}", "data.corpora={}")  # fmt: skip
    done = cli(*words)
    assert done.code == 0, done.err
    tried = next(line for line in done.out.splitlines() if line.startswith("try"))
    assert shlex.split(tried)[1:] == ["llamaseek", "generate", str(out / "model")]
    page = (out / "report.html").read_text()
    assert html.escape(shlex.quote(str(out / "model"))).replace("&#x27;", "&#39;") in page


@pytest.mark.parametrize(
    "words",
    [
        "quickstart",
        "pretrain tiny-shakespeare",
        "sft quickstart-sft",
        "reward quickstart-reward",
        "dpo quickstart-dpo",
        "grpo arithmetic-grpo",
        "ppo quickstart-ppo",
        "finetune base rows.jsonl",
    ],
)
def test_a_terminal_shows_something_before_pytorch_is_loaded(words: str, tmp_path: Path) -> None:
    """PyTorch takes seconds: here it is a file that says when it would have been loaded."""
    (tmp_path / "torch.py").write_text("import sys\nsys.exit('PyTorch is loaded')\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ours, theirs = os.openpty()
    subprocess.run(
        [sys.executable, "-m", "llamaseek", *words.split()], cwd=tmp_path, stderr=theirs,
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 4096).decode().splitlines()
    os.close(ours)
    assert shown and shown[0].startswith((words.split()[-1], words.split()[0], "looking at"))
