"""What TRL gives for DPO's loss on three pairs: `python -m notebooks.trl_dpo` writes trl_dpo.json.

Notebook 6 compares with these values, so that it needs no TRL. The pairs' log-probabilities are
transformers'; the loss is `DPOTrainer`'s, one pair at a time.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.text.train_bpe import train_bpe
from llamaseek.train.saving.state import save_folder

VALUES = Path(__file__).with_suffix(".json")
BETA, NLL_WEIGHT = 0.1, 0.2
PAIRS = [
    ("The red fox", "chased the blue bird.", "No."),
    ("Who is there?", "It is the old owl, with a smile.", "Nobody! Nobody at all!"),
    ("Say yes", "yes", "I would rather say no"),
]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def values() -> dict[str, Any]:
    """TRL's loss of each pair, and the log-probabilities (2, T) of its answers, chosen first."""
    tokenizer = train_bpe([" ".join(pair) for pair in PAIRS], 300)
    config = config_from_sizes("llama3", {**SIZES, "vocab_size": tokenizer.vocab_size})
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for seed, name in enumerate(("policy", "reference")):
            torch.manual_seed(seed)
            save_folder(Path(folder) / name, build_model(config), tokenizer)
            models.append(AutoModelForCausalLM.from_pretrained(Path(folder) / name))
        trainer = DPOTrainer(
            *models,
            args=DPOConfig(
                output_dir=folder, report_to=[], max_length=128, bf16=False, use_cpu=True,
                gradient_checkpointing=False, beta=BETA, loss_type=["sigmoid", "sft"],
                loss_weights=[1.0, NLL_WEIGHT],
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=AutoTokenizer.from_pretrained(Path(folder) / "policy"),
        )  # fmt: skip
        encoded = [[tokenizer.encode(text) for text in pair] for pair in PAIRS]
        return {
            "beta": BETA,
            "nll_weight": NLL_WEIGHT,
            "pairs": [of_pair(trainer, models, pair) for pair in encoded],
        }


def of_pair(trainer: Any, models: list[Any], pair: list[list[int]]) -> dict[str, Any]:
    """One pair: ids of the prompt, the chosen and the rejected answer."""
    row = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True))
    batch = trainer.data_collator([row])
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, dict(batch)))
        policy, reference = (log_probs(model, batch) for model in models)
    return {"loss": loss, "policy": policy, "reference": reference}


def log_probs(model: Any, batch: dict[str, torch.Tensor]) -> list[list[float]]:
    """Those of the tokens of each answer of a batch."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    found = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    answers = batch["completion_mask"][:, 1:] > 0
    return [row[answer].tolist() for row, answer in zip(found, answers, strict=True)]


if __name__ == "__main__":
    VALUES.write_text(json.dumps(values(), indent=1) + "\n", encoding="utf-8")
