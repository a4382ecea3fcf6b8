"""Decoding and prompts from GGUF files: our engine beside llama.cpp on the same file.

    python bench/gguf_decode.py [--json PATH] [--model MODEL] [--folder PATH] [--only CASE,…]

Q4_0, Q4_1, Q8_0 and Q4_K_M files of SmolLM2-135M-Instruct, written from the downloaded one by
`llamaseek convert` into `--folder`. For each case every side's process opens its file and waits;
then they are timed in turn, five rounds, on as many threads, and medians are compared. A rate's
share of the limit is the file's bytes read a second against a plain read of a gigabyte, or its
products a second against a square bf16 product. All sides run on the CPU.

The file is not called gguf.py: that name would hide the package from every script beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import decode
from bench.common import Row, report, row

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "bench-gguf"
TYPES = ("q4_0", "q4_1", "q8_0", "q4_k_m")
PEER = "llama.cpp"


@dataclass(frozen=True)
class GgufCase(decode.Case):
    """A case of one file for both sides."""

    def path(self, folder: Path) -> Path:
        """The file."""
        return folder / f"{self.gguf}.gguf"


CASES = tuple(
    GgufCase(f"{what} {asked}", f"{asked}.gguf", asked, prefill=prefill, steps=32)
    for prefill, what in ((False, "decode"), (True, "prompt 256"))
    for asked in TYPES
)


def make(model: Path, folder: Path) -> None:
    """Write the files that are not there."""
    from llamaseek.checkpoints.to_gguf import GgufConversion

    folder.mkdir(parents=True, exist_ok=True)
    for asked in TYPES:
        if not (folder / f"{asked}.gguf").exists():
            GgufConversion(model, folder / f"{asked}.gguf", asked).run()


def demand(case: GgufCase, folder: Path) -> tuple[float, str, float]:
    """What a token costs: bytes of weights read, or operations of the prompt's products."""
    from llamaseek.herd.folder import read_config
    from llamaseek.plan.flops import ACCUMULATE, matrix_flops

    path = case.path(folder)
    if not case.prefill:
        return path.stat().st_size, "GB/s", 1e9
    config = read_config(path)
    return (
        matrix_flops(config) - ACCUMULATE * config.vocab_size * config.hidden_size,
        "GFLOP/s",
        1e9,
    )


def compare(case: GgufCase, folder: Path, peers: list[str]) -> list[Row]:
    """Every side in turn, round after round."""
    running = {side: Process(side, case, folder) for side in ("ours", *peers, "limit")}
    for _ in range(decode.ROUNDS):
        for process in running.values():
            process.measure()
    rates = {side: process.close() for side, process in running.items()}
    used, unit, scale = demand(case, folder)
    share = rates["ours"] * used / rates["limit"]
    rows = [row(case.name, "tokens/s", rates["ours"], peer, rates[peer], share) for peer in peers]
    limit = Row(case.name, unit, rates["ours"] * used / scale, "limit", None, None, share)
    return [*rows, limit]


class Process(decode.Process):
    """A side's process of this file."""

    script = __file__


def main() -> None:
    """Parse, measure, print; or be one side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", help="cases by name, with commas")
    parser.add_argument("--side", choices=decode.SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = [case for case in CASES if not options.only or case.name in options.only.split(",")]
    if options.side:
        decode.work(options.side, wanted[0], options.folder)
        return
    from llamaseek.checkpoints.sources import find_source

    make(find_source(Path(options.model)), options.folder)
    peers = [PEER] if find_spec("llama_cpp") else []
    rows = [found for case in wanted for found in compare(case, options.folder, peers)]
    report(rows, [] if peers else [f"{PEER} (not installed)"], options.json)


if __name__ == "__main__":
    main()
