"""Every post-training stage through the one loop: runs, figures, folders, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.data.bad_rows import RowError
from llamaseek.data.pack import Example, pack_whole
from llamaseek.errors import UserError
from llamaseek.herd import config_from_sizes
from llamaseek.models import CausalLM, build_model
from llamaseek.models.quant.nf4 import NF4Linear
from llamaseek.models.score import reward_model
from llamaseek.recipe.load import make_recipe
from llamaseek.recipe.post_training import DistillRecipe
from llamaseek.report.page import write_report
from llamaseek.train.jobs.pretrain import build_job
from llamaseek.train.loop import Trainer, train
from llamaseek.train.objectives.distill import Distill
from llamaseek.train.saving.run_folder import RunFolder
from llamaseek.train.saving.state import save_folder
from tests.models.shapes import tiny_model
from tests.train.test_loop import assert_same, weights
from tests.train.test_trl import backward
from tests.train.tiny import DEEPSEEK_SIZES, LLAMA_SIZES, tiny_tokenizer

FAMILIES = ("llama3", "deepseek_v3")
VOWEL = [{"kind": "regex", "pattern": "[aeiou]"}]  # what an untrained model says now and then
ROLLOUT = {"samples": 2, "max_tokens": 5, "rewards": VOWEL, "eval_prompts": 4}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained model of each family, and a reward model, as folders."""
    tokenizer, made = tiny_tokenizer(), {}
    sizes = {"llama3": LLAMA_SIZES, "deepseek_v3": DEEPSEEK_SIZES}
    for family in FAMILIES:
        torch.manual_seed(0)
        own: dict[str, Any] = {**sizes[family], "vocab_size": tokenizer.vocab_size}
        own |= {"initializer_range": 0.1, "pad_token_id": tokenizer.pad_id}
        own["max_position_embeddings"] = 512  # pairs are up to 400 tokens long
        folder = tmp_path_factory.mktemp(family)
        save_folder(folder, build_model(config_from_sizes(family, own)), tokenizer)
        made[family] = str(folder)
    return made


def recipe(stage: str, start: str, out: Path, rows: str, **sections: Any) -> Any:
    train_section = {
        "steps": 4, "batch": 4, "warmup": 1, "precision": "fp32", "eval_every": 2,
        "save_every": 3, "lr": 1e-3, **sections.pop("train", {}),
    }  # fmt: skip
    data = {"rows": {rows: 12}, "length": 128, **sections.pop("data", {})}
    return make_recipe(
        {"name": "tiny", "stage": stage, "out": str(out), "model": {"init_from": start},
         "data": data, "train": train_section, **sections}
    )  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(folder: Path) -> list[dict[str, Any]]:
    """The lines of training steps, without those of evaluations."""
    return [line for line in lines(folder) if "loss" in line]


def cut_and_resume(made: Any, step: int) -> Path:
    """A run that stops after `step` and goes on in another job."""
    first = Trainer(build_job(made))
    first.folder.create()
    first._start(False)
    for number in range(step):
        first.folder.log(first.step(number))
    first._save(step)
    return train(build_job(made), resume=True).path


@pytest.mark.parametrize("family, loss", [("llama3", "dapo"), ("deepseek_v3", "sequence")])
def test_grpo_runs_resumes_and_is_watched(
    family: str, loss: str, starts: dict[str, str], tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "rollout": {**ROLLOUT, "minibatches": 2, "epochs": 1}, "grpo": {"loss": loss, "beta": 0.04},
    }  # fmt: skip
    whole = recipe("grpo", starts[family], tmp_path / "whole", "arithmetic", **sections)
    folder = train(build_job(whole)).path
    logged = lines(folder)
    assert [line["step"] for line in logged if "val_reward" in line] == [0, 2, 4]
    steps = [line for line in logged if "loss" in line]
    assert any(line["grad_norm"] > 0 for line in steps)
    assert {"reward", "accuracy", "length", "no_signal", "finished"} <= steps[0].keys()
    assert "reward" not in steps[1]  # the second half of the same rollout
    for name in ("kl", "entropy", "clip_fraction"):
        assert all(name in line for line in steps)
    assert "KL to the reference" in write_report(folder).read_text()
    cut = recipe("grpo", starts[family], tmp_path / "cut", "arithmetic", **sections)
    resumed = cut_and_resume(cut, 3)  # in the middle of the second rollout
    assert_same(weights(folder), weights(resumed))


def test_ppo_runs_and_resumes_with_its_value_head(starts: dict[str, str], tmp_path: Path) -> None:
    scorer = recipe("reward", starts["llama3"], tmp_path / "reward", "preferences",
                    data={"length": 400})  # fmt: skip
    reward = train(build_job(scorer))
    assert load_model(reward.final).config.is_reward_model
    assert {"accuracy", "margin", "score"} <= trained(reward.path)[0].keys()
    judge = {"kind": "model", "model": str(reward.final)}
    sections: dict[str, Any] = {
        "rollout": {**ROLLOUT, "epochs": 2, "rewards": [judge]},
        "ppo": {"kl_target": 1.0},
    }  # fmt: skip
    whole = recipe("ppo", starts["llama3"], tmp_path / "whole", "arithmetic", **sections)
    folder = train(build_job(whole)).path
    names = set().union(*lines(folder))
    assert {"reward", "kl", "kl_coefficient", "loss/value", "entropy", "val_reward"} <= names
    assert not any("value_head" in name for name in weights(folder))
    cut = recipe("ppo", starts["llama3"], tmp_path / "cut", "arithmetic", **sections)
    assert_same(weights(folder), weights(cut_and_resume(cut, 3)))


def test_rejection_sampling_trains_on_the_best(starts: dict[str, str], tmp_path: Path) -> None:
    plan = {"samples": 6, "max_tokens": 20, "rewards": VOWEL}
    made = recipe("sft", starts["llama3"], tmp_path / "run", "arithmetic", sampling=plan)
    job = build_job(made)
    assert job.sampled["sampled/best_reward"] >= job.sampled["sampled/reward"]
    folder = train(job).path
    kept = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all(row["messages"][-1]["role"] == "assistant" for row in kept)


@pytest.mark.parametrize(
    ("family", "base", "dora"),
    [("llama3", "nf4", False), ("deepseek_v3", "float", False), ("llama3", "float", True)],
)
def test_adapters_alone_are_trained_and_saved(
    family: str, base: str, dora: bool, starts: dict[str, str], tmp_path: Path
) -> None:
    lora = {"rank": 2, "alpha": 4.0, "base": base, "use_dora": dora, "use_rslora": dora}
    whole = recipe("sft", starts[family], tmp_path / "whole", "arithmetic", lora=lora)
    run = train(build_job(whole))
    frozen = build_job(whole).model
    assert any(isinstance(m, NF4Linear) for m in frozen.modules()) == (base == "nf4")
    merged = load_model(run.final)
    if base == "float":
        again = load_model(starts[family], adapter=run.adapter)
        ids = torch.arange(20)[None]
        ours, theirs = (m.eval()(ids, ids).detach() for m in (merged, again))
        assert float((ours - theirs).abs().max()) < 1e-5
    cut = recipe("sft", starts[family], tmp_path / "cut", "arithmetic", lora=lora)
    folder = cut_and_resume(cut, 3)
    assert_same(weights(run.path), weights(folder))
    step = folder / "checkpoints" / "step-4"
    assert (step / "adapter_model.safetensors").is_file()
    assert not (step / "model.safetensors").exists()


def test_dpo_trains_deepseek_too(starts: dict[str, str], tmp_path: Path) -> None:
    made = recipe("dpo", starts["deepseek_v3"], tmp_path / "dpo", "preferences",
                  data={"length": 400}, train={"lr": 3e-3, "steps": 6})  # fmt: skip
    folder = train(build_job(made)).path
    first, last = trained(folder)[0], lines(folder)[-1]
    assert first["loss/dpo"] == pytest.approx(0.6931, abs=1e-3)  # it is its own reference
    assert last["val_loss/dpo"] < 0.69 and last["val_accuracy"] > 0.5


def test_dpo_and_grpo_take_adapters(starts: dict[str, str], tmp_path: Path) -> None:
    lora = {"rank": 2, "targets": ["q_proj", "v_proj"]}
    sections: dict[str, Any] = {"rollout": ROLLOUT, "grpo": {"beta": 0.1}, "lora": lora}
    made = recipe("grpo", starts["llama3"], tmp_path / "grpo", "arithmetic", **sections)
    first = next(line for line in lines(train(build_job(made)).path) if "loss" in line)
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the base, no copy
    made = recipe("dpo", starts["llama3"], tmp_path / "dpo", "preferences", lora=lora,
                  data={"length": 400})  # fmt: skip
    assert RunFolder(train(build_job(made)).path).adapter.is_dir()


def test_distillation_is_the_plain_formula() -> None:
    student, teacher = tiny_model("llama3"), tiny_model("llama3")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ids = torch.randint(0, 90, (9,)).tolist()
    targets = [-100, -100, *ids[3:], -100]
    batch = pack_whole([Example(ids, targets)], 12)
    objective = Distill(teacher, DistillRecipe(teacher="", temperature=2.0, weight=0.3))
    found = backward(objective, student, batch)
    tokens, positions = torch.tensor([ids]), torch.arange(9)[None]

    def logits(model: CausalLM) -> torch.Tensor:
        return model.logits(model(tokens, positions))[0, 2:8].detach()

    ours, theirs = logits(student), logits(teacher)
    hard = torch.nn.functional.cross_entropy(ours, torch.tensor(ids[3:]))
    p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
    soft = (p * (p.log() - q.log())).sum(-1).mean() * 4
    assert found == pytest.approx(float(0.7 * hard + 0.3 * soft), abs=1e-5)


def test_distillation_trains(starts: dict[str, str], tmp_path: Path) -> None:
    made = recipe("sft", starts["llama3"], tmp_path / "run", "arithmetic",
                  distill={"teacher": starts["llama3"]})  # fmt: skip
    steps = trained(train(build_job(made)).path)
    assert steps[0]["loss/distill"] < 1e-6 < steps[1]["loss/distill"]  # it starts as its teacher
    job = build_job(made)
    Trainer(job)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(
            job.model.eval()(ids, ids), load_model(starts["llama3"]).eval()(ids, ids)
        )
    other = recipe("sft", starts["llama3"], tmp_path, "arithmetic", distill={"teacher": "nowhere"})
    with pytest.raises(UserError, match="nowhere"):
        build_job(other)


def test_bad_recipes_and_rows_are_one_line(starts: dict[str, str], tmp_path: Path) -> None:
    start = starts["llama3"]
    with pytest.raises(UserError, match="rollout.rewards: is empty"):
        build_job(recipe("grpo", start, tmp_path, "arithmetic"))
    with pytest.raises(UserError, match=r"rollout.samples: 3 is not allowed; .* \(4\)"):
        build_job(recipe("grpo", start, tmp_path, "arithmetic", rollout={**ROLLOUT, "samples": 3}))
    with pytest.raises(UserError, match="is not a reward model"):
        rewards = [{"kind": "model", "model": start}]
        build_job(recipe("ppo", start, tmp_path, "arithmetic",
                         rollout={**ROLLOUT, "rewards": rewards}))  # fmt: skip
    save_model(reward_model(load_model(start)), tmp_path / "judge")
    for stage, found in (("sft", "model.init_from"), ("pretrain", "model.init_from")):
        with pytest.raises(UserError, match=f"{found}: .*judge is a reward model"):
            build_job(recipe(stage, str(tmp_path / "judge"), tmp_path, "preferences"))
    with pytest.raises(UserError, match="distill.teacher: .*judge is a reward model"):
        teacher = {"teacher": str(tmp_path / "judge")}
        build_job(recipe("sft", start, tmp_path, "tasks", distill=teacher))
    with pytest.raises(RowError, match="has no 'answer'"):
        exact = {**ROLLOUT, "rewards": [{"kind": "exact"}]}
        build_job(recipe("grpo", start, tmp_path, "tasks", rollout=exact))
    with pytest.raises(UserError, match="rollout.rewards.0.kind"):
        recipe("grpo", start, tmp_path, "tasks", rollout={"rewards": [{"kind": "taste"}]})
    with pytest.raises(UserError, match="'colum'.*'column'"):
        recipe(
            "grpo", start, tmp_path, "tasks", rollout={"rewards": [{"kind": "exact", "colum": 1}]}
        )
