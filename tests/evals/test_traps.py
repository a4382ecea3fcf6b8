"""Traps that change a score without a word: templates, shots, dates, batches, letters."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from llamaseek.checkpoints.hf import save_model
from llamaseek.evals.lm import DATE, chat_prompt
from llamaseek.evals.run import EvalOptions, make_plan
from llamaseek.evals.table import rows
from tests.evals.benchmarks import right_choice, write, write_groups
from tests.evals.oracles import Oracle, asked, gold
from tests.evals.test_engine_lm import check_same, ours
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER
from tests.text.styles import tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("benchmarks"))


def test_shots_are_turns_of_a_chat_and_one_text_without_a_template(data: Path) -> None:
    chat, plain = gold(), gold()
    asked(chat, data, "gsm8k_llama", chat="on", limit=1)
    asked(plain, data, "gsm8k_llama", chat="off", limit=1)
    roles = [line.split(":")[0] for line in chat.prompts[0].splitlines()
             if line.startswith(("user:", "assistant:"))]  # fmt: skip
    assert roles == ["user", "assistant"] * 8 + ["user"]
    assert "assistant:" not in plain.prompts[0] and plain.prompts[0].count("final answer") > 8


def test_the_template_is_used_where_it_helps_and_the_line_says_so(data: Path) -> None:
    """Auto: for answers of a chat, not for options that are scored, nor for code to go on with."""
    said: list[str] = []
    names = ["piqa", "gsm8k_llama", "humaneval", "humaneval_llama"]
    _, plan = make_plan(EvalOptions(tasks=names, data=[data]), True, said.append)
    assert [planned.chat for planned in plan] == [False, True, False, True]
    assert [line.endswith(", chat template") for line in said] == [False, True, False, True]
    forced = EvalOptions(tasks=["piqa", "humaneval"], data=[data], chat="on")
    assert [planned.chat for planned in make_plan(forced, True, said.append)[1]] == [True, True]


def test_the_date_of_a_template_is_the_same_on_every_day() -> None:
    talk = [{"role": "user", "content": "Hello"}]
    dated = chat_prompt(tokenizer("llama3.1"), talk)
    assert f"Today Date: {DATE}" in dated and DATE == "26 Jul 2024"
    assert "Today" not in chat_prompt(tokenizer("llama3"), talk)


def test_verdicts_are_those_of_any_batch_cached_or_not(tmp_path: Path, data: Path) -> None:
    """In float32, and with long prompts that share their beginnings."""
    model = tiny_model("llama3", vocab_size=TOKENIZER.vocab_size, max_position_embeddings=4096)
    save_model(model, tmp_path)
    TOKENIZER.save(tmp_path)
    tasks = ["lm-eval:mmlu_anatomy", "hellaswag", "gsm8k"]
    wanted = ours(tmp_path, data, tasks, max_num_seqs=1, enable_prefix_caching=False)
    for batch, cached in ((1, True), (8, True), (64, False)):
        found = ours(tmp_path, data, tasks, max_num_seqs=batch, enable_prefix_caching=cached)
        check_same(wanted, found)


def test_letters_that_are_guessed_show_their_chance_and_texts_are_offered(tmp_path: Path) -> None:
    write_groups(tmp_path)
    rng = Random(5)
    letters = Oracle(lambda task, doc: rng.randrange(4), lambda task, doc: "")
    micro, macro, *_ = rows(asked(letters, tmp_path, "mmlu"))
    assert micro.chance == macro.chance == 0.25 and micro.items == 57
    assert abs(micro.value - micro.chance) < 4 * (0.25 * 0.75 / 57) ** 0.5
    texts = Oracle(right_choice, lambda task, doc: "")
    (cloze, *_) = rows(asked(texts, tmp_path, "mmlu_cloze"))
    assert cloze.chance == 0.25 and cloze.value == 1.0
    assert all("\nA. " in prompt for prompt in letters.prompts)
    assert not any("\nA. " in prompt for prompt in texts.prompts)
