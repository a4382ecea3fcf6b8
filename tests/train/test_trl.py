"""Losses and gradients agree with TRL's on the same model and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.rankings import preferences, rankings
from llamaseek.data.rows import conversations
from llamaseek.models import CausalLM, build_model
from llamaseek.models.loss import sum_by_sequence, target_log_probs
from llamaseek.models.score import reward_model
from llamaseek.text.chat import PROMPT, encode_chat
from llamaseek.train.objectives.dpo import DPO
from llamaseek.train.objectives.next_token import NextToken
from llamaseek.train.objectives.reward import BradleyTerry
from llamaseek.train.saving.state import save_folder
from tests.models.shapes import tiny_config
from tests.train.tiny import tiny_tokenizer

PAIRS = [
    ("The red fox", "chased the blue bird.", "No."),
    ("Who is there?", "It is the old owl, with a smile.", "Nobody! Nobody at all!"),
    ("Say yes", "yes", "I would rather say no"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy and a reference, as folders that transformers reads too."""
    tokenizer = tiny_tokenizer()
    made = []
    for seed, name in enumerate(("policy", "reference")):
        torch.manual_seed(seed)
        config = tiny_config("llama3", vocab_size=tokenizer.vocab_size)
        folder = tmp_path_factory.mktemp(name)
        save_folder(folder, build_model(config), tokenizer)
        made.append(folder)
    return made[0], made[1]


def arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "report_to": [],
        "per_device_train_batch_size": len(PAIRS),
        "max_length": 256,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
    }


def ids_of(prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The chat as ids, split where the answer begins."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    chat = encode_chat(tiny_tokenizer(), messages)
    begin = next(i for i, kind in enumerate(chat.kinds) if kind != PROMPT)
    return chat.ids[:begin], chat.ids[begin:]


@pytest.mark.parametrize("nll", [0.0, 0.2])
def test_plain_dpo_matches_trl(nll: float, folders: tuple[Path, Path], tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    policy, reference = folders
    rows = []
    for prompt, chosen, rejected in PAIRS:
        prompt_ids, chosen_ids = ids_of(prompt, chosen)
        rejected_ids = ids_of(prompt, rejected)[1]
        rows.append(
            {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
        )
    texts = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy),
        AutoModelForCausalLM.from_pretrained(reference),
        args=DPOConfig(
            **arguments(tmp_path), beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, nll]
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    expected = trl_backward(trainer, rows)

    batch = preferences(texts_of(PAIRS), tiny_tokenizer(), 256, "plain")
    with torch.no_grad():
        log_p = target_log_probs(load_model(reference), batch)
    batch.extra["reference"] = sum_by_sequence(log_p, batch)
    ours = load_model(policy)
    assert backward(DPO(0.1, nll), ours, batch) == pytest.approx(expected, abs=1e-5)
    close(ours, trainer.model)


def texts_of(pairs: list[tuple[str, str, str]]) -> list[tuple[str, dict[str, Any]]]:
    names = ("prompt", "chosen", "rejected")
    return [(f"x:{i}", dict(zip(names, pair, strict=True))) for i, pair in enumerate(pairs)]


def test_fine_tuning_loss_matches_trl(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = []
    for prompt, answer, _ in PAIRS:
        prompt_ids, answer_ids = ids_of(prompt, answer)
        mask = [0] * len(prompt_ids) + [1] * len(answer_ids)
        rows.append({"input_ids": prompt_ids + answer_ids, "completion_mask": mask})
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folders[0]),
        args=SFTConfig(**arguments(tmp_path), completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folders[0]),
    )
    expected = trl_backward(trainer, [dict(row) for row in trainer.train_dataset])

    batch = conversations(
        ((str(i), {"prompt": p, "completion": a}) for i, (p, a, _) in enumerate(PAIRS)),
        tiny_tokenizer(),
        256,
    )
    ours = load_model(folders[0])
    assert backward(NextToken(0.0), ours, batch) == pytest.approx(expected, abs=1e-5)
    close(ours, trainer.model)


def test_reward_loss_matches_trl(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    scorer, folder = reward_model(load_model(folders[0])), tmp_path / "reward"
    save_folder(folder, scorer, tiny_tokenizer())
    twin = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(twin.score.weight, scorer.score.weight)
    rows = []
    for prompt, chosen, rejected in PAIRS:
        sides = [sum(ids_of(prompt, answer), []) for answer in (chosen, rejected)]
        rows.append({"chosen_ids": sides[0], "rejected_ids": sides[1]})
    trainer = RewardTrainer(
        twin,
        args=RewardConfig(**arguments(tmp_path)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    expected = trl_backward(trainer, rows)
    batch = rankings(texts_of(PAIRS), tiny_tokenizer(), 256)
    ours = load_model(folder)
    assert backward(BradleyTerry(), ours, batch) == pytest.approx(expected, abs=1e-5)
    close(ours, trainer.model)


def test_llama_form_counts_content_only_and_keeps_the_end_in_the_nll() -> None:
    rows = [("0", {"prompt": "a", "chosen": "b c", "rejected": "d"})]
    plain = preferences(rows, tiny_tokenizer(), 128, "plain")
    llama = preferences(rows, tiny_tokenizer(), 128, "llama3")
    end = llama.targets == tiny_tokenizer().eot_id
    assert int(end.sum()) == 2
    assert not llama.extra["counts_for_preference"][end].any()
    assert plain.extra["counts_for_preference"][end].all()
    difference = plain.extra["counts_for_preference"] - llama.extra["counts_for_preference"]
    assert int(difference.sum()) == 2
    assert torch.equal(plain.targets, llama.targets)


def close(ours: CausalLM, theirs: Any) -> None:
    """Gradients by name, within 1e-5 of the largest."""
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    scale = max(float(grad.abs().max()) for grad in wanted.values())
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        assert grad is not None and wanted[name] is not None
        assert float((grad - wanted[name]).abs().max()) <= 1e-5 * scale, name


def backward(objective: Any, model: CausalLM, batch: Any) -> float:
    """The loss as the loop puts it together, and its gradients."""
    counts = objective.counts(batch)
    model.train()
    terms = objective.terms(model, batch)
    loss = torch.stack([t.weight * t.sum / counts[t.name] for t in terms if t.weight]).sum()
    loss.backward()
    return float(loss.detach())


def trl_backward(trainer: Any, rows: list[dict[str, Any]]) -> float:
    batch = trainer.data_collator(rows)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach())
