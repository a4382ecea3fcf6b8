"""What 8 and 4 bits cost: perplexity of held-out text against the same model in bf16.

    python bench/quality.py MODEL TEXT [--json PATH] [--holdout 0.1] [--length 256]

MODEL is a trained folder, TEXT the file that it was trained on, whose last part it has not seen.
Each folder runs as the engine would run it, packed, on the kernels where there are any.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import Row, report
from llamaseek.checkpoints.hf import load_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.kernels.build import builder
from llamaseek.text.tokenizer import Tokenizer

BITS = {"int8": 8, "int4": 4}


@torch.inference_mode()
def perplexity(folder: Path, rows: torch.Tensor) -> float:
    """exp of the mean loss over rows (B, T + 1) of token ids."""
    model = load_model(folder, torch.bfloat16).eval()
    positions = torch.arange(rows.shape[1] - 1)
    total = 0.0
    for part in rows.split(4):
        hidden = model(part[:, :-1], positions.expand(len(part), -1))
        logits = model.logits(hidden).float().flatten(0, 1)
        total += float(
            torch.nn.functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum")
        )
    return math.exp(total / rows[:, 1:].numel())


def held_out(model: Path, text: Path, share: float, length: int) -> torch.Tensor:
    """Rows (B, length + 1) of the text's last part; each begins where the one before ended."""
    whole = text.read_text(encoding="utf-8")
    ids = Tokenizer.load(model).encode(whole[int(len(whole) * (1 - share)) :])
    count = (len(ids) - 1) // length
    return torch.tensor(ids[: count * length + 1]).unfold(0, length + 1, length)


def compare(model: Path, rows: torch.Tensor) -> list[Row]:
    """A row for each number of bits; a ratio is the plain model's perplexity over the packed."""
    plain = perplexity(model, rows)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name, bits in BITS.items():
            Quantization(model, Path(place) / name, bits).run()
            packed = perplexity(Path(place) / name, rows)
            print(f"{name}: {packed:.4f}, {packed / plain - 1:+.2%}; bf16: {plain:.4f}")
            found.append(Row(name, "perplexity", packed, "bf16", plain, plain / packed, None))
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    builder().build()
    rows = held_out(options.model, options.text, options.holdout, options.length)
    report(compare(options.model, rows), [], options.json)


if __name__ == "__main__":
    main()
