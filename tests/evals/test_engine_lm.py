"""The engine as lm-eval's model: item by item what lm-eval's own `hf` model finds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.engine.request import SamplingParams
from llamaseek.errors import UserError
from llamaseek.evals.lm import EngineLM, chat_prompt
from llamaseek.evals.run import EvalOptions, Evaluation, evaluate_engine
from llamaseek.text.tokenizer import Tokenizer
from tests.evals.benchmarks import write
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER

TASKS = ["piqa", "hellaswag", "winogrande", "arc_easy", "gsm8k_llama", "openbookqa"]
FIRST = ["The best answer is", " A", " B"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose end tokens are never the likeliest: `hf` ends turns at fewer."""
    place = tmp_path_factory.mktemp("eval") / "model"
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size, max_position_embeddings=4096)
    with torch.no_grad():
        model.lm_head.weight[sorted(TOKENIZER.special_ids)] = 0
    save_model(model, place)
    TOKENIZER.save(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("benchmarks"))


def ours(folder: Path, data: Path, tasks: list[str], **options: Any) -> Evaluation:
    engine = {k: options.pop(k) for k in ("max_num_seqs", "enable_prefix_caching") if k in options}
    it = Engine(load_model(folder), Tokenizer.load(folder), EngineOptions(**engine))
    given = {"chat": "off", "limit": 6, "max_gen_toks": 12} | options
    return evaluate_engine(it, EvalOptions(tasks=tasks, data=[data], **given))


def theirs(folder: Path, data: Path, tasks: list[str], **options: Any) -> Evaluation:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from llamaseek.evals.run import make_plan, run_plan

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    lm = HFLM(pretrained=model, tokenizer=str(folder), batch_size=1, max_length=4095)
    given = EvalOptions(
        tasks=tasks, data=[data], **({"chat": "off", "limit": 6, "max_gen_toks": 12} | options)
    )
    manager, plan = make_plan(given, given.chat == "on", lambda line: None)
    return run_plan(lm, manager, plan, given, "hf")


def check_same(one: Evaluation, other: Evaluation) -> None:
    """The same prompts, greedy flags and texts, and log-likelihoods to 1e-4."""
    assert one.samples.keys() == other.samples.keys()
    for task, rows in one.samples.items():
        for row, match in zip(rows, other.samples[task], strict=True):
            assert [a[0] for a in row["arguments"]] == [a[0] for a in match["arguments"]]
            for a, b in zip(row["resps"], match["resps"], strict=True):
                if isinstance(a[0], str):
                    assert a == b
                else:
                    assert a[0][1] == b[0][1] and math.isclose(a[0][0], b[0][0], abs_tol=1e-4)
            assert row["metrics"] == match["metrics"]
            assert [row[each] for each in row["metrics"]] == [
                match[each] for each in row["metrics"]
            ]


@pytest.fixture(scope="module")
def reference(folder: Path, data: Path) -> Evaluation:
    return theirs(folder, data, TASKS)


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("cached", [True, False])
def test_items_are_those_of_the_hf_model(
    folder: Path, data: Path, reference: Evaluation, batch: int, cached: bool
) -> None:
    how = {"max_num_seqs": batch, "enable_prefix_caching": cached}
    check_same(reference, ours(folder, data, TASKS, **how))


def test_chats_are_those_of_the_hf_model(folder: Path, data: Path) -> None:
    tasks = ["gsm8k_llama", "arc_challenge_llama", "piqa"]
    check_same(theirs(folder, data, tasks, chat="on"), ours(folder, data, tasks, chat="on"))


def lm_of(folder: Path, **options: Any) -> EngineLM:
    return EngineLM(Engine(load_model(folder), Tokenizer.load(folder)), TOKENIZER, **options)


def request(kind: str, *arguments: Any, doc: int = 0) -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=("task", doc, 1))


def test_begin_of_text_stands_once(folder: Path) -> None:
    lm = lm_of(folder)
    (bos,) = TOKENIZER.prefix_ids
    chat = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    for text in ("Hello", chat):
        ids = lm.encode(text)
        assert ids[0] == bos and bos not in ids[1:]
        before, _ = lm.encode_pair(text, " you")
        assert before[0] == bos and bos not in before[1:]
    assert lm.encode_pair("", " you")[0] == [bos]


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("Answer: ", "A"), ("Answer:", " A"), ("Answer:\n\n", "A"), ("The fo", "x ran"),
        ("Wer? ", "Grüße"), ("🦊", "\u200d👩"), ("", "A fox"),
    ],
)  # fmt: skip
def test_the_border_of_context_and_continuation_is_where_hf_puts_it(
    folder: Path, context: str, continuation: str
) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    hf = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(folder), tokenizer=str(folder))
    asked = [request("loglikelihood", context, continuation)]
    (found,) = lm_of(folder).loglikelihood(asked)
    (wanted,) = hf.loglikelihood(asked)
    assert found == (pytest.approx(wanted[0], abs=1e-4), wanted[1])
    if context:
        assert lm_of(folder).encode_pair(context, continuation) == hf._encode_pair(
            context, continuation
        )


def test_rolling_windows_are_those_of_the_hf_model(folder: Path) -> None:
    """Without its own begin-of-text, which `hf` would put after the one that lm-eval puts."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    hf = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder), tokenizer=str(folder),
        max_length=4095, add_bos_token=False,
    )  # fmt: skip
    asked = [request("loglikelihood_rolling", "The red fox ran. " * n) for n in (1, 3)]
    found, wanted = lm_of(folder).loglikelihood_rolling(asked), hf.loglikelihood_rolling(asked)
    assert found == pytest.approx(wanted, abs=1e-3)


def test_a_template_is_rendered_as_transformers_does(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Who? \n"},
        {"role": "assistant", "content": "A fox."},
        {"role": "user", "content": "Why <|eot_id|>?"},
    ]
    for messages, opened in (
        (talk, True),
        ([*talk, {"role": "assistant", "content": "As"}], False),
    ):
        wanted = theirs.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=opened,
            continue_final_message=not opened,
        )
        found = chat_prompt(TOKENIZER, messages, opened)
        assert found == wanted
        ends = [*found.head, *TOKENIZER.encode(found.tail)].count(TOKENIZER.eot_id)
        assert ends == (4 if opened else 4)  # what the user spells is text


def test_a_stop_that_is_a_control_token_stops(folder: Path) -> None:
    lm = lm_of(folder)
    kwargs: dict[str, Any] = {"until": ["<|eot_id|>", "\n\n"], "max_gen_toks": 5}
    job = lm._generation("task", [1, 2], kwargs, {})
    assert job.params["stop"] == ["\n\n"]
    assert job.params["stop_token_ids"] == [TOKENIZER.eot_id]
    SamplingParams(**job.params)


def test_an_answer_at_its_limit_is_counted_as_cut(folder: Path) -> None:
    lm = lm_of(folder)
    lm.generate_until([request("generate_until", "The fox", {"until": [], "max_gen_toks": 3})])
    assert lm.warnings["task"].at_limit == 1
    assert lm.facts["task", 0]["finish_reason"] == "length"
    assert lm.facts["task", 0]["answer_tokens"] == 3


def test_a_task_without_a_limit_gets_lm_evals(folder: Path) -> None:
    lm = lm_of(folder)
    lm.generate_until([request("generate_until", "The fox", {"until": []})])
    assert lm.facts["task", 0]["answer_tokens"] <= 256


def test_a_prompt_that_does_not_fit_is_refused_or_cut_and_counted(tmp_path: Path) -> None:
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size)
    engine = Engine(model, TOKENIZER)
    long = "The red fox ran over the hill. " * 60
    asked = [request("loglikelihood", long, " It"), request("loglikelihood", "A", " fox", doc=1)]
    with pytest.raises(UserError, match="task: 1 of 2 prompts do not fit.*--truncate"):
        EngineLM(engine, TOKENIZER).loglikelihood(asked)
    cut = EngineLM(engine, TOKENIZER, truncate=True)
    cut.loglikelihood(asked)
    assert cut.warnings["task"].cut_prompts == 1
    answer = request("generate_until", long, {"until": [], "max_gen_toks": 3})
    with pytest.raises(UserError, match="do not fit"):
        EngineLM(engine, TOKENIZER).generate_until([answer])
    cut.generate_until([answer])
    begin = cut._fitted(cut._generation("task", cut.encode(long), {"max_gen_toks": 3}, {}))
    assert begin.prompt[0] == TOKENIZER.prefix_ids[0]
    assert len(begin.prompt) == engine.context - 1


def test_letters_of_a_question_are_one_request(folder: Path) -> None:
    lm = lm_of(folder)
    context, *letters = FIRST
    asked = [request("loglikelihood", context, letter) for letter in letters]
    together = lm.loglikelihood(asked)
    assert lm.engine.statistics.steps == 1
    apart = [lm.loglikelihood([one])[0] for one in asked]
    for one, other in zip(together, apart, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-5) and one[1] == other[1]


def test_a_resumed_run_computes_what_is_missing_and_writes_the_same_bytes(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["piqa", "arc_easy", "gsm8k_llama"]
    ours(folder, data, tasks, out=tmp_path / "whole")
    with pytest.raises(UserError, match="--resume"):
        ours(folder, data, tasks, out=tmp_path / "whole")
    journal = (tmp_path / "whole/journal.jsonl").read_bytes()
    for cut in (0, 1, len(journal) // 3, len(journal) // 2, len(journal) - 3, len(journal)):
        out = tmp_path / f"cut{cut}"
        out.mkdir()
        (out / "journal.jsonl").write_bytes(journal[:cut])
        ours(folder, data, tasks, out=out, resume=True)
        for file in ("samples.jsonl", "journal.jsonl"):
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert comparable(out) == comparable(tmp_path / "whole")
    changed = load_model(folder)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    given = EvalOptions(tasks=tasks, data=[data], limit=6, out=out, resume=True)
    with pytest.raises(UserError, match="weights="):
        evaluate_engine(Engine(changed, TOKENIZER), given)


def comparable(out: Path) -> Any:
    """results.json without what says when and where it was made."""
    found = json.loads((out / "results.json").read_text())
    return {key: value for key, value in found.items() if key != "date"}
