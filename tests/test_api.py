"""The Python face: what `import llamaseek` gives, and every block of docs/api.md."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import peft
import pytest
import torch

import llamaseek
from llamaseek import Model, SamplingParams, UserError
from llamaseek.checkpoints.hf import load_model
from llamaseek.engine import leader
from llamaseek.herd import config_from_sizes
from llamaseek.model import OTHER_METHODS, SamplingOptions
from llamaseek.models import build_model
from llamaseek.models.score import reward_model
from llamaseek.recipe.load import save_recipe
from llamaseek.text.chat import encode_chat
from llamaseek.train.saving.state import save_folder
from tests.cli.run import Cli
from tests.train.tiny import LLAMA_SIZES, recipe, tiny_tokenizer

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
TALK = [{"role": "user", "content": "hello"}]
ANSWERED = [*TALK, {"role": "assistant", "content": "hi"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a model, an adapter of it, a reward model and a recipe."""
    folder = tmp_path_factory.mktemp("api")
    tokenizer = tiny_tokenizer()
    sizes = {**LLAMA_SIZES, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 1024}
    torch.manual_seed(3)
    model = build_model(config_from_sizes("llama3", sizes))
    save_folder(folder / "runs/mine/model", model, tokenizer)
    save_folder(folder / "runs/reward/model", reward_model(model), tokenizer)
    save_adapter(folder / "runs/mine/model", folder / "runs/mine/adapter")
    save_recipe(recipe(folder), folder / "my.yaml")
    return folder


def save_adapter(base: Path, folder: Path) -> None:
    """An adapter of peft's own making that changes what the model says."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(4)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)


@pytest.fixture
def model(place: Path) -> Model:
    return llamaseek.load(place / "runs/mine/model", device="cpu", dtype="fp32")


def test_importing_is_light_and_names_are_there_whatever_came_before() -> None:
    program = """
import sys, time
start = time.perf_counter()
import llamaseek
took = time.perf_counter() - start
assert took < 0.05, took
assert "torch" not in sys.modules and "pydantic" not in sys.modules
assert set(llamaseek.__all__) <= set(dir(llamaseek))
import llamaseek.train.job, llamaseek.plan.answer
for name in llamaseek.__all__:
    assert callable(getattr(llamaseek, name)) or name == "__version__", name
assert llamaseek.plan("llama-3.1-8b", gpu="h100-80gb")["parameters"] == 8030261248
assert "torch._dynamo" not in sys.modules
try:
    llamaseek.lode
except AttributeError as error:
    assert "lode" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_blocks_of_the_page_run_in_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    assert len(BLOCKS) >= 9
    for block in BLOCKS:
        exec(compile(block, "docs/api.md", "exec"), names)
    missing = {n for n in llamaseek.__all__ if n not in (ROOT / "docs/api.md").read_text()}
    assert not missing


def test_keywords_are_the_fields_of_sampling_params() -> None:
    names = {field.name for field in fields(SamplingParams)}
    left_out = {*OTHER_METHODS, "detokenize"}
    assert set(SamplingOptions.__annotations__) == names - left_out


def test_generate_is_transformers_greedy_answer(place: Path, model: Model) -> None:
    import transformers

    folder = place / "runs/mine/model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for text in ("The red fox", "A small"):
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
        wanted = model.tokenizer.decode(out[0, len(ids) :].tolist())
        assert model.generate(text, max_tokens=12) == wanted
        assert "".join(model.stream(text, max_tokens=12)) == wanted


def test_a_list_for_a_list_and_the_same_answers(model: Model) -> None:
    texts = ["The red fox", "A small"]
    assert model.generate(texts, max_tokens=8) == [model.generate(t, max_tokens=8) for t in texts]
    assert model.generate([], max_tokens=8) == []
    talks = [TALK, [*ANSWERED, *TALK]]
    answers = model.chat(talks, max_tokens=8)
    assert answers == [model.chat(talk, max_tokens=8) for talk in talks]
    assert [a["role"] for a in answers] == ["assistant"] * 2
    assert "".join(model.stream(TALK, max_tokens=8)) == answers[0]["content"]
    assert model.embed(texts).shape == (2, 32) and model.embed("x").shape == (32,)
    torch.testing.assert_close(model.embed(texts)[1], model.embed(texts[1]))
    assert model.embed("x").norm() == pytest.approx(1)


def ending_soon(model: Model, place: int) -> Iterator[int]:
    """The model with its `place`-th greedy token after "The red fox" as its end token."""
    from llamaseek.engine.engine import Engine

    (out,) = Engine(model.network, model.tokenizer).generate(
        ["The red fox"], SamplingParams(max_tokens=20, ignore_eos=True)
    )
    tokens = out.answers[0].tokens
    end = tokens[place]
    model.network.config = replace(model.network.config, eos_token_id=(end,))
    yield tokens.index(end)


def test_answers_end_at_the_end_tokens_of_the_model(place: Path, model: Model) -> None:
    whole = model.generate("The red fox", max_tokens=20, ignore_eos=True)
    (length,) = ending_soon(model, 5)
    ending = Model(model.network, model.tokenizer)
    (out,) = ending.engine.generate(["The red fox"], SamplingParams(max_tokens=20))
    assert (len(out.answers[0].tokens), out.answers[0].finish) == (length, "stop")
    assert out.answers[0].stop_id == ending.config.eos_token_id[0]  # type: ignore[index]
    assert ending.generate("The red fox", max_tokens=20, ignore_eos=True) == whole


def test_end_tokens_of_the_tokenizer_and_of_the_config_count(model: Model) -> None:
    assert model.engine.end_token_ids >= set(model.tokenizer.stop_ids)
    eos = model.tokenizer.stop_ids[0]
    params = SamplingParams(max_tokens=9, logit_bias={eos: 100.0})
    assert model.generate("The red fox", params) == ""


def test_logprobs_are_the_model_s(place: Path, model: Model) -> None:
    text = "The red fox is here"
    ids = torch.tensor([[model.tokenizer.bos_id, *model.tokenizer.encode(text)]])
    network = load_model(place / "runs/mine/model").eval()
    with torch.no_grad():
        hidden = network(ids, torch.arange(ids.shape[1])[None])
        expected = network.logits(hidden)[0].log_softmax(-1)
    found = model.logprobs(text, top=1)
    assert [one.token for one in found] == ids[0, 1:].tolist()
    for at, one in enumerate(found):
        assert one.logprob == pytest.approx(float(expected[at, one.token]), abs=1e-4)
        assert one.top[0][0] == int(expected[at].argmax())
    (again,) = model.logprobs([text], top=1)
    assert math.isclose(sum(a.logprob for a in again), sum(a.logprob for a in found), rel_tol=1e-5)


def test_rewards_are_transformers_scores(place: Path) -> None:
    import transformers

    folder = place / "runs/reward/model"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    judge = llamaseek.load(folder, device="cpu")
    talks = [ANSWERED, [*ANSWERED, *ANSWERED]]
    found = judge.reward(talks)
    for talk, score in zip(talks, found, strict=True):
        ids = torch.tensor([encode_chat(judge.tokenizer, talk).ids])
        with torch.no_grad():
            assert score == pytest.approx(float(theirs(ids).logits[0, 0]), abs=1e-4)
    assert judge.reward(ANSWERED) == pytest.approx(found[0], abs=1e-5)


def test_adapters_are_merged_as_peft_does(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    base, adapter = place / "runs/mine/model", place / "runs/mine/adapter"
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()
    ids = torch.tensor([[5, 9, 30, 77]])
    with torch.no_grad():
        wanted = theirs(ids).logits
    for given in (
        llamaseek.load(base, device="cpu", adapter=adapter),
        llamaseek.load(adapter, device="cpu"),  # it names its base
    ):
        with torch.no_grad():
            found = given.network.logits(given.network(ids, torch.arange(4)[None]))
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_a_command_takes_what_load_takes(place: Path, cli: Cli) -> None:
    adapter = place / "runs/mine/adapter"
    options = ("--max-tokens", "6", "--temperature", "0", "--device", "cpu")
    done = cli("generate", str(adapter), "The red fox", *options)
    model = llamaseek.load(adapter, device="cpu")
    wanted = model.generate("The red fox", max_tokens=6, temperature=0)
    assert done.code == 0 and done.out.rstrip("\n") == f"The red fox{wanted}".rstrip("\n")


def test_several_ranks_refuse_an_adapter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamaseek.engine.leader.started_ranks", lambda: 2)
    with pytest.raises(UserError, match="is an adapter, which is not for several ranks; merge"):
        leader.answer(place / "runs/mine/adapter", "cpu", lambda group: None, print)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda m: m.generate("x", tempertaure=1), "option 'tempertaure' is unknown.*temperature"),
        (lambda m: m.generate("x", temperature=-1), "temperature: -1 is not allowed"),
        (lambda m: m.generate("x", n=2), "n: 2 is not allowed"),
        (lambda m: m.generate("x", logprobs=2), "logprobs: 2 is not allowed"),
        (lambda m: m.generate(3), "prompt: 3 is not allowed"),
        (lambda m: m.generate("x", stop_token_ids=[-1]), "stop_token_ids: -1 is not allowed"),
        (lambda m: m.generate("x " * 4000), "prompt: has .* tokens; the model's context"),
        (lambda m: m.chat([{"role": "usr", "content": "x"}]), "messages.0..role: 'usr'"),
        (lambda m: m.chat([]), "messages"),
        (lambda m: m.chat("hello"), "messages"),
        (lambda m: m.reward(ANSWERED), "is no reward model"),
    ],
)
def test_mistakes_are_one_line(model: Model, wrong: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        wrong(model)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_sources_that_are_no_models_say_what_to_do(place: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        llamaseek.load(place / "nowhere")
    with pytest.raises(UserError, match="is a run's folder; its model is"):
        llamaseek.load(place / "runs/mine")
    for wrong in ({"device": "tpu"}, {"dtype": "int3"}):
        with pytest.raises(UserError, match=f"{[*wrong][0]}: .* is not allowed; allowed: auto"):
            llamaseek.load(place / "runs/mine/model", **wrong)
    with pytest.raises(UserError, match="is given for .*, which is an adapter"):
        llamaseek.load(place / "runs/mine/adapter", adapter=place / "runs/mine/adapter")
    judge = llamaseek.load(place / "runs/reward/model", device="cpu")
    with pytest.raises(UserError, match="reward model: it returns scores and cannot generate"):
        judge.generate("x")


def test_recipes_and_plans_refuse_what_is_unknown(place: Path) -> None:
    with pytest.raises(UserError, match="train.stpes.*did you mean 'steps'"):
        llamaseek.Recipe.load("quickstart-sft", {"train.stpes": 3})
    with pytest.raises(UserError, match="recipe 'quikstart-sft.*' is unknown"):
        llamaseek.train("quikstart-sft")
    with pytest.raises(UserError, match="option 'tsk' is unknown"):
        llamaseek.plan("llama-3.1-8b", gpu="h100-80gb", tsk="sft")
    loaded = llamaseek.Recipe.load("quickstart-sft", ["train.betas=[0.8, 0.9]"])
    assert loaded == llamaseek.Recipe.load("quickstart-sft", {"train.betas": (0.8, 0.9)})
    assert loaded.with_overrides({"train.lr": 1e-5}).train.lr == 1e-5
