"""The tables of README.md and docs/ that `bench/results/` is the source of.

    python bench/tables.py            prints every table
    python bench/tables.py --write    puts them into the pages, in the place of the old ones

A page has a comment `<!-- bench NAME -->` on the line before a table. No PyTorch is needed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(<!-- bench (\w+) -->\n)((?:\|.*\n)*)")
CHATS = {"tiny": "tiny, 5 chats/s", "1b": "1B, 1 chat/s"}
LATENCIES = {
    "to first token p50": "time to first token, median",
    "to first token p99": "time to first token, 99th percentile",
    "per token p50": "time per output token, median",
    "per token p99": "time per output token, 99th percentile",
}


class Results:
    """The rows of one file of results."""

    def __init__(self, name: str) -> None:
        path = ROOT / "bench" / "results" / f"{name}.json"
        self.rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]

    def row(self, case: str, metric: str = "tokens/s", peer: str | None = None) -> dict[str, Any]:
        """The first row of a case, by its metric and, where it is given, its peer."""
        wanted = {"case": case, "metric": metric} | ({"peer": peer} if peer else {})
        return next(r for r in self.rows if wanted.items() <= r.items())

    def rate(self, case: str) -> float:
        """Tokens a second."""
        return float(self.row(case)["value"])


def times(ratio: float, digits: int = 2) -> str:
    """A ratio as the tables write it."""
    return f"{ratio:.{digits}f}×"


def train() -> Iterable[list[str]]:
    """Training beside transformers."""
    yield [
        "",
        "tokens/s",
        "relative to transformers",
        "relative to transformers with torch.compile",
        "share of peak FLOP/s",
    ]
    found = Results("train")
    for label, case in (
        ("Llama 3, eager", "llama3 eager"),
        ("Llama 3, compiled", "llama3 compiled"),
        (
            "DeepSeek-V3 with as many activated parameters, compiled",
            "deepseek_v3 compiled",
        ),
    ):
        rate = found.rate(case)
        beside = [times(rate / found.rate(f"transformers {how}")) for how in ("eager", "compiled")]
        yield [label, f"{rate:,.0f}", *beside, f"{found.row(case)['limit_share']:.0%}"]


def _decode(found: Results, case: str, name: str, peer: str) -> list[str]:
    """A row of the README, and its middle in docs/engine.md."""
    row = found.row(case, peer="llama.cpp")
    share = f"{row['limit_share']:.0%}"
    return [name, f"{row['value']:.0f}", times(row["ratio"]) + peer, share]


def decode() -> Iterable[list[str]]:
    """Decoding one sequence beside llama.cpp."""
    yield ["", "tokens/s", "relative to llama.cpp", "share of memory bandwidth"]
    found = Results("decode")
    for name, peer in (("bf16", ""), ("int8", " (q8_0)"), ("int4", " (q4_0)")):
        yield _decode(found, f"decode {name}", name, peer)


def engine() -> Iterable[list[str]]:
    """Decoding, a prompt and a batch beside llama.cpp."""
    yield ["", "tokens/s", "llama.cpp tokens/s", "ratio", "share of the hardware limit"]
    found = Results("decode")
    for label, case in (
        ("decode, bf16", "decode bf16"),
        ("decode, int8 (llama.cpp: q8_0)", "decode int8"),
        ("decode, int4 (llama.cpp: q4_0)", "decode int4"),
        ("prompt of 256 tokens, bf16", "prefill 256 bf16"),
        ("prompt of 256 tokens, int8", "prefill 256 int8"),
        ("prompt of 256 tokens, int4", "prefill 256 int4"),
        ("prompt of 2,048 tokens, bf16", "prefill 2048 bf16"),
        ("prompt of 2,048 tokens, int8", "prefill 2048 int8"),
        ("prompt of 2,048 tokens, int4", "prefill 2048 int4"),
        ("decode, batch of 16, bf16", "decode 16 at once bf16"),
    ):
        first, rate, ratio, share = _decode(found, case, label, "")
        peer = found.row(case, peer="llama.cpp")["peer_value"]
        yield [first, rate, f"{peer:.0f}", ratio, share]


GGUF_CASES = {"decode": "decode", "prompt of 256 tokens": "prompt 256"}


def gguf() -> Iterable[list[str]]:
    """Decoding and a prompt from GGUF files of a published model."""
    yield ["", "tokens/s", "llama.cpp tokens/s", "ratio"]
    found = Results("gguf_decode")
    for label, case in GGUF_CASES.items():
        for kind in ("q4_0", "q4_1", "q8_0", "q4_k_m"):
            row = found.row(f"{case} {kind}", peer="llama.cpp")
            rates = (f"{row[side]:,.0f}" for side in ("value", "peer_value"))
            yield [f"{label}, {kind.upper()}", *rates, times(row["ratio"])]


def start() -> Iterable[list[str]]:
    """Seconds of a fresh process up to its first token."""
    peers = ("llama.cpp", "transformers", "1.3 x llama.cpp + import")
    yield ["", "seconds", *peers[:2], "1.3 × llama.cpp + PyTorch's import"]
    rows = [row for row in Results("start").rows if row["metric"] == "s"]
    for case in dict.fromkeys(row["case"] for row in rows if row["case"] != "import torch"):
        beside = {row["peer"]: row for row in rows if row["case"] == case}
        theirs = (f"{beside[p]['peer_value']:.2f}" if p in beside else "" for p in peers)
        yield [case, f"{beside['llama.cpp']['value']:.2f}", *theirs]


def serve() -> Iterable[list[str]]:
    """Our server's figures, and its ratios to llama.cpp's and transformers'."""
    yield ["", "ours", "llama.cpp", "transformers"]
    found = Results("serve")

    def line(label: str, case: str, metric: str, unit: str) -> list[str]:
        rows = [found.row(case, metric, peer) for peer in ("llama.cpp", "transformers")]
        value = rows[0]["value"]
        ours = f"{value:.0f}" if value >= 20 else f"{value:.1f}"
        return [label, f"{ours} {unit}", *(times(row["ratio"]) for row in rows)]

    for size, name in (("tiny", "tiny model"), ("1b", "shape of Llama 3.2 1B")):
        yield line(f"{name}, all at once", f"{size} burst", "tokens/s", "tokens/s")
    for size, name in CHATS.items():
        for what, label in LATENCIES.items():
            yield line(f"{name}: {label}", f"{size} poisson", f"ms {what}", "ms")
        top = f"{name.partition(',')[0]}, highest sustained rate"
        yield line(top, f"{size} highest", "chats/s sustained", "chats/s")


def quantize() -> Iterable[list[str]]:
    """Bytes and perplexity by rule."""
    yield ["", "MB", "perplexity", "change"]
    found = Results("quantize")
    for case in dict.fromkeys(row["case"] for row in found.rows):
        row = found.row(case, "perplexity")
        change = "" if case == "bf16" else f"{1 / row['ratio'] - 1:+.2%}"
        yield [case, f"{found.row(case, 'MB')['value']:.1f}", f"{row['value']:.2f}", change]


def evaluation() -> Iterable[list[str]]:
    """Benchmarks beside lm-eval's own model."""
    yield ["", "items a minute", "lm-eval's `hf`, better of batch 1 and 8", "ratio"]
    for found in Results("eval").rows:
        rates = (f"{found[key]:,.1f}" for key in ("value", "peer_value"))
        yield [found["case"], *rates, times(found["ratio"])]


TABLES: dict[str, Callable[[], Iterable[list[str]]]] = {
    "train": train,
    "decode": decode,
    "engine": engine,
    "gguf": gguf,
    "start": start,
    "serve": serve,
    "quantize": quantize,
    "eval": evaluation,
}
PAGES = ("README.md", "docs/engine.md", "docs/serving.md", "docs/eval.md")


def table(name: str) -> str:
    """A table in Markdown."""
    head, *rows = TABLES[name]()
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """A page's text with its tables made anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return PLACE.sub(lambda found: found[1] + table(found[2]), text)


def main() -> None:
    """Print, or write."""
    if sys.argv[1:] == ["--write"]:
        for page in PAGES:
            (ROOT / page).write_text(written(page), encoding="utf-8")
        return
    for name in TABLES:
        print(f"{name}\n\n{table(name)}")


if __name__ == "__main__":
    main()
