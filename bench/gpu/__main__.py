"""Everything that only a GPU can show, part by part, each under its own limit.

    python -m bench.gpu [--out FOLDER] [--only PART,…] [--dry]

Needs no network and installs nothing. After each part FOLDER/gpu.json and FOLDER/gpu.md are written
anew, so that what was found is kept whatever happens next. With `--dry` the same parts run on a CPU
in tiny sizes: that shows that they run, and no figure of it means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
KERNELS = (
    "tests/kernels/test_paged_kernels.py",
    "tests/kernels/test_few_bits_kernels.py",
    "tests/kernels/test_fused.py",
    "tests/kernels/test_routing.py",
    "tests/engine/test_gpu.py",
    "tests/models/test_block_scaled.py",
)
# Of what the project needs, what the parts import, beside PyTorch; a test holds them to it.
WHEELS = ("numpy", "safetensors", "gguf", "tokenizers", "pydantic", "pyyaml", "typer", "rich",
          "tensorboard", "pytest", "pytest-timeout", "transformers", "huggingface_hub")  # fmt: skip
TRAINING = ("tests/gpu/test_training.py",)
DECODED = "decode bf16,decode int4,decode fp8,decode 16 at once bf16"


@dataclass(frozen=True)
class Part:
    """A command that prints a JSON object a line; what else it prints is its log."""

    name: str
    seconds: int
    command: tuple[str, ...]
    dry: tuple[str, ...]


def bench(name: str, *options: str) -> tuple[str, ...]:
    """A module of this folder."""
    return "-m", f"bench.gpu.{name}", *options


PARTS = (
    Part("machine", 45, bench("machine"), bench("machine", "--dry")),
    Part("kernels", 150, (*PYTEST, *KERNELS), (*PYTEST, "--collect-only", *KERNELS)),
    Part("training tests", 90, (*PYTEST, *TRAINING), (*PYTEST, "-k", "eager", *TRAINING)),
    Part("training", 150, bench("training"), bench("training", "--dry")),
    Part("rollouts", 60, bench("rollouts"), bench("rollouts", "--dry")),
    Part(
        "decode",
        150,
        ("bench/decode.py", "--only", DECODED, "--device", "cuda", "--folder", "/tmp/bench-1b"),
        ("bench/decode.py", "--help"),
    ),
)


def run(part: Part, dry: bool) -> dict[str, Any]:
    """How a part ended, what it found and the end of its log."""
    command = [sys.executable, *(part.dry if dry else part.command)]
    path = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))  # with unpacked wheels
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if dry:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=part.seconds, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        ended, output = f"exit {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as late:
        ended, output = f"stopped after {part.seconds} s", (late.stdout or b"").decode()
    lines = output.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    log = [line for line in lines if not line.startswith("{")][-40:]
    seconds = round(time.perf_counter() - start, 1)
    return {"part": part.name, "ended": ended, "seconds": seconds, "found": found, "log": log}


def write(done: list[dict[str, Any]], folder: Path) -> None:
    """`gpu.json`, and `gpu.md` to read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(done, indent=1) + "\n")
    lines = ["# make gpu", ""]
    for part in done:
        lines += [f"## {part['part']}: {part['ended']}, {part['seconds']} s", ""]
        for figures in part["found"]:
            lines += [f"- {name}: {value}" for name, value in figures.items()] + [""]
        if not part["found"] or part["ended"] != "exit 0":
            lines += ["```", *part["log"][-15:], "```", ""]
    (folder / "gpu.md").write_text("\n".join(lines))


def main() -> None:
    """Run the parts in turn; exit 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--only", help="parts, by commas")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [part.name for part in PARTS]
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}; parts: {[p.name for p in PARTS]}")
    done: list[dict[str, Any]] = []
    for part in (part for part in PARTS if part.name in wanted):
        done.append(run(part, options.dry))
        write(done, options.out)
        print(f"{part.name}: {done[-1]['ended']}, {done[-1]['seconds']} s", flush=True)
    sys.exit(any(part["ended"] != "exit 0" for part in done))


if __name__ == "__main__":
    main()
