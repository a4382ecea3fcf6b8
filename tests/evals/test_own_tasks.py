"""CORE, needles and tool calls, which are not lm-eval's, against their own sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from llamaseek.engine.engine import Engine
from llamaseek.errors import UserError
from llamaseek.evals import core, needle, tool_calls
from llamaseek.evals.run import EvalOptions, Evaluation, evaluate_engine
from llamaseek.evals.table import rows
from tests.evals.benchmarks import ROWS, write_core
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER


def model(**sizes: Any) -> Any:
    torch.manual_seed(1)
    return tiny_model("llama3", vocab_size=TOKENIZER.vocab_size, **sizes)


def scored(folder: Path, *tasks: str, **options: Any) -> tuple[Any, Evaluation]:
    it = model(max_position_embeddings=2048)
    given = EvalOptions(tasks=list(tasks), data=[folder], chat="off", **options)
    return it, evaluate_engine(Engine(it, TOKENIZER), given)


def test_core_picks_what_nanochats_way_picks(tmp_path: Path) -> None:
    """Whole texts encoded, one forward pass each, means over what differs."""
    it, found = scored(write_core(tmp_path), "core")
    tasks, _ = core.read_bundle(tmp_path / "eval_bundle")
    for task in tasks:
        samples = found.samples[f"core_{task.label}"]
        for row, sample in zip(core.rows_of(task), samples, strict=True):
            assert sample["acc"] == float(nanochat(it, task.kind, row)), task.label


def losses(it: Any, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        hidden = it(torch.tensor([ids]), torch.arange(len(ids))[None])
        logits = it.logits(hidden)[0, :-1].float()
    wanted = torch.tensor(ids[1:])
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1)


def nanochat(it: Any, kind: str, row: dict[str, Any]) -> bool:
    def encoded(text: str) -> list[int]:
        return [*TOKENIZER.prefix_ids, *TOKENIZER.encode(text)]

    texts = [encoded(c + a) for c in row["contexts"] for a in row["answers"]]
    if kind == "language_modeling":
        start = len(encoded(row["contexts"][0].strip()))
        _, best = losses(it, texts[0])
        return best[start - 1 :].tolist() == texts[0][start:]
    sides = [text[::-1] for text in texts] if kind == "schema" else texts
    same = next(n for n in range(min(map(len, sides))) if len({side[n] for side in sides}) > 1)
    means = [losses(it, t)[0][(len(t) - same if kind == "schema" else same) - 1 :].mean()
             for t in texts]  # fmt: skip
    return means.index(min(means)) == row["gold"]


def test_options_are_compared_after_the_tokens_that_they_share() -> None:
    from llamaseek.evals.lm import Likelihood

    one = Likelihood.of([5, 1, 2], [-9.0, -1.0, -3.0], False)
    other = Likelihood.of([5, 3], [-9.0, -2.5], False)
    assert core.mean_losses([one, other]) == [2.0, 2.5]
    with pytest.raises(UserError, match="a server does not give"):
        core.mean_losses([(-1.0, False), (-2.0, True)])


def test_a_bundle_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs nanochat's eval_bundle"):
        core.find_bundle([tmp_path])
    write_core(tmp_path)
    bundle = core.find_bundle([tmp_path])
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\n")
    with pytest.raises(UserError, match="is no eval_bundle: KeyError: 'options'"):
        core.read_bundle(bundle)


def test_needles_stand_in_texts_of_the_asked_length() -> None:
    def count(text: str) -> int:
        return len(TOKENIZER.encode(text))

    items = needle.rows_of(4, 1024, count)
    assert len(items) == needle.DEPTHS
    for row in items:
        assert 600 < count(row["prompt"]) < 1024 - needle.ANSWER_TOKENS
        codes = row["target"].split(", ")
        places = [row["prompt"].index(code) for code in codes]
        assert len(set(places)) == 4
    first, last = needle.rows_of(1, 1024, count)[0], needle.rows_of(1, 1024, count)[-1]
    assert first["prompt"].startswith("The code of")
    told = last["prompt"].partition("\n\n")[0]
    assert told.endswith(f"is {last['target']}.")
    assert needle.lengths_within(5000) == [1024, 2048, 4096]
    with pytest.raises(UserError, match="needs a context of at least 1024 tokens"):
        needle.lengths_within(1000)


def test_needles_are_asked_as_far_as_the_context_goes(tmp_path: Path) -> None:
    _, found = scored(tmp_path, "needle", limit=1)
    assert list(found.samples) == ["needle_1024", "needle_2048"]
    sizes = [samples[0]["prompt_tokens"] for samples in found.samples.values()]
    assert sizes[0] < 1024 and 1500 < sizes[1] < 2048
    shown = {(row.task, row.metric) for row in rows(found)}
    assert shown == {(name, metric) for name in ("needle", "needle_1024", "needle_2048")
                     for metric in ("exact_match", "recall")}  # fmt: skip


CALL = '{"name": "weather.get", "parameters": %s}'


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (CALL % '{"city": "City 0"}', True),
        (CALL % '{"city": "City 0", "unit": "C"}', True),
        (CALL % '{"city": "City 0", "unit": "F"}', False),
        (CALL % '{"city": "City 0", "day": 1}', False),
        (CALL % '{"unit": "C"}', False),
        (CALL % '{"city": "city 0"}', False),
        (f"{CALL}; {CALL}" % (('{"city": "City 0"}',) * 2), False),
        ('{"name": "weather", "parameters": {"city": "City 0"}}', False),
        ('[weather.get(city="City 0")]', True),
        ("It is sunny in City 0.", False),
    ],
)
def test_a_call_is_right_to_the_letter(answer: str, right: bool) -> None:
    doc = tool_calls.adapted(ROWS["tool_calls"](0))
    assert tool_calls.verdict(doc, [answer])["exact_match"] == float(right)


def test_functions_are_told_as_llama_3_1s_template_tells_them() -> None:
    text = tool_calls.prompt(tool_calls.adapted(ROWS["tool_calls"](1)))
    assert text.startswith("Given the following functions, please respond with a JSON")
    assert text.endswith("How is it in City 1 and Town 1?")
    shown = json.loads(text[text.index("{\n") : text.rindex("}") + 1])
    assert shown["type"] == "function"
    assert shown["function"]["parameters"]["type"] == "object"


def test_true_is_not_one() -> None:
    calls = tool_calls.plain_calls('{"name": "f", "parameters": {"a": true}}')
    assert tool_calls.same_calls(calls, [{"f": {"a": [True]}}])
    assert not tool_calls.same_calls(calls, [{"f": {"a": [1]}}])
