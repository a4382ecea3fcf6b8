"""What fewer bits cost: perplexity of held-out text against the same model in bf16, by rule.

    python bench/quantize.py MODEL TEXT [--json PATH] [--holdout 0.1] [--length 512] [--rows 12]

MODEL is a folder or a GGUF file. TEXT is a file of which the last part, `--holdout`, is measured,
in rows of `--length` tokens that each stand alone; calibration reads the part before it. Folders
are made by `quantize`, GGUF files by `convert`, and by llama.cpp's own quantizer if installed.
What is compared are the weights: all are widened, and products run in bf16 where there are any.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import Row, report
from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.hf import load_model
from llamaseek.checkpoints.quantize import Quantization
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.runtime.device import pick_dtype
from llamaseek.text.tokenizer import Tokenizer

PRODUCTS = pick_dtype("auto", torch.device("cpu"))
TYPES = ("q8_0", "q4_0", "q4_1", "q4_k_m")
FOLDERS = {
    "int8, a scale a row": (8, 0, False),
    "int8, groups of 32": (8, 32, False),
    "int4, groups of 64": (4, 64, False),
    "int4, groups of 32": (4, 32, False),
    "int4, groups of 32, GPTQ": (4, 32, True),
}


@dataclass(frozen=True)
class Bench:
    """A model, the text's rows (B, T) to measure, its first part, and a folder to work in."""

    model: Path
    rows: torch.Tensor
    calibration: Path
    place: Path

    def made(self) -> Iterator[tuple[str, Path]]:
        """Every rule's name with the folder or file that it gives, one at a time."""
        for number, (name, (bits, group, calibrate)) in enumerate(FOLDERS.items()):
            target = self.place / f"folder-{number}"
            text = self.calibration if calibrate else None
            Quantization(self.model, target, bits, group, text, PRODUCTS).run()
            yield name, target
        for asked in TYPES:
            target = self.place / f"ours-{asked}.gguf"
            GgufConversion(self.model, target, asked).run()
            yield f"GGUF {asked}", target
        if find_spec("llama_cpp"):
            wide = self.place / "wide.gguf"
            GgufConversion(self.model, wide, "f32").run()
            for asked in TYPES:
                yield f"llama.cpp {asked}", llama_cpp_file(wide, asked)

    @torch.inference_mode()
    @torch.autocast("cpu", PRODUCTS, PRODUCTS is torch.bfloat16)
    def perplexity(self, path: Path) -> float:
        """exp of the mean loss over the tokens of each row after its first."""
        if path.is_dir():
            wide = self.place / "widened"
            Conversion(path, wide, torch.float32).run(overwrite=True)
            path = wide
        model, total = load_model(path).eval(), 0.0
        positions = torch.arange(self.rows.shape[1] - 1)
        loss = partial(torch.nn.functional.cross_entropy, reduction="sum")
        for part in self.rows.split(2):
            hidden = model(part[:, :-1], positions.expand(len(part), -1))
            total += float(loss(model.logits(hidden).float().flatten(0, 1), part[:, 1:].flatten()))
        return math.exp(total / self.rows[:, 1:].numel())


def llama_cpp_file(wide: Path, asked: str) -> Path:
    """A GGUF file written by llama.cpp's quantizer."""
    import llama_cpp

    target = wide.with_name(f"llama-cpp-{asked}.gguf")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{asked.upper()}")
    names = str(wide).encode(), str(target).encode()
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(options)) == 0
    return target


def megabytes(path: Path) -> float:
    """Of a file, or of a folder's weights."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def compare(bench: Bench) -> list[Row]:
    """Two rows a rule: perplexity, whose ratio is that of bf16 over it, and megabytes."""
    plain = bench.place / "bf16"
    Conversion(bench.model, plain, torch.bfloat16).run()
    wanted, size = bench.perplexity(plain), megabytes(plain)
    found = [
        Row("bf16", "perplexity", wanted, "bf16", wanted, 1.0, None),
        Row("bf16", "MB", size, "bf16", size, 1.0, None),
    ]
    for name, path in bench.made():
        value, taken = bench.perplexity(path), megabytes(path)
        print(f"| {name} | {taken:.1f} | {value:.3f} | {value / wanted - 1:+.2%} |", flush=True)
        found.append(Row(name, "perplexity", value, "bf16", wanted, wanted / value, None))
        found.append(Row(name, "MB", taken, "bf16", size, size / taken, None))
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    cut = int(len(text) * (1 - options.holdout))
    ids = Tokenizer.load(options.model).encode(text[cut:])
    count = min(len(ids) // options.length, options.rows)
    rows = torch.tensor(ids[: count * options.length]).view(count, -1)
    with tempfile.TemporaryDirectory() as place:
        calibration = Path(place) / "calibration.txt"
        calibration.write_text(text[:cut], encoding="utf-8")
        found = compare(Bench(options.model, rows, calibration, Path(place)))
    report(found, [] if find_spec("llama_cpp") else ["llama-cpp-python"], options.json)


if __name__ == "__main__":
    main()
