"""Decoding speed: our engine beside llama.cpp and transformers, Llama 3.2 1B's shape.

    python bench/decode.py [--json PATH] [--folder PATH] [--only CASE,…] [--device cuda]

Weights are random and made once in `--folder` (10 GB). For each case every side's process loads
its model and waits; then they are timed in turn, five rounds, so that all see the same machine, and
medians are compared. A rate's share of the limit is the weights it reads a second against a plain
read of a gigabyte, or its products a second against a square bf16 product, timed in the same
rounds. Ours are steps of the engine: scheduling, sampling and the cache are in the time.

Where there is a GPU all sides run on it (`--device cpu` keeps them off), and fp8 is a case too;
llama.cpp is left out unless its build has one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import Row, installed, report, row
from llamaseek.runtime.device import pick_device

ROUNDS, CHUNK = 5, 512
FOLDER = Path(__file__).resolve().parents[1] / "runs" / "bench-1b"


@dataclass(frozen=True)
class Case:
    """What is timed: our folder and the peer's file, how many sequences, and whether the prompt.

    `gpu` cases are for GPUs alone.
    """

    name: str
    ours: str
    gguf: str
    batch: int = 1
    prefill: bool = False
    transformers: bool = False
    steps: int = 16
    gpu: bool = False
    device: str = "cpu"
    prompt: int = 256

    def settle(self) -> None:
        """Wait for what the device still computes."""
        if self.device != "cpu":
            torch.cuda.synchronize()


CASES = (
    Case("decode bf16", "bf16", "bf16", transformers=True, steps=10),
    Case("decode int8", "int8", "q8_0"),
    Case("decode int4", "int4", "q4_0"),
    Case("decode fp8", "fp8", "q8_0", gpu=True),
    Case("prefill 256 bf16", "bf16", "bf16", prefill=True, transformers=True),
    Case("prefill 256 int8", "int8", "q8_0", prefill=True),
    Case("prefill 256 int4", "int4", "q4_0", prefill=True),
    Case("prefill 2048 bf16", "bf16", "bf16", prefill=True, transformers=True, prompt=2048),
    Case("prefill 2048 int8", "int8", "q8_0", prefill=True, prompt=2048),
    Case("prefill 2048 int4", "int4", "q4_0", prefill=True, prompt=2048),
    Case("decode 16 at once bf16", "bf16", "bf16", batch=16, transformers=True, steps=6),
)


class Side(Protocol):
    """One side of a case, its model loaded."""

    def rate(self) -> float:
        """Tokens a second: of the prompt, or decoded by all sequences together."""
        ...


class Ours:
    """The engine, by its steps."""

    def __init__(self, case: Case, folder: Path) -> None:
        from llamaseek.checkpoints.hf import load_model
        from llamaseek.engine.engine import Engine
        from llamaseek.engine.open import open_model
        from llamaseek.engine.options import EngineOptions
        from llamaseek.kernels.build import builder

        builder().build()
        self.case = case
        path, kept = folder / case.ours, case.device != "cpu"
        if path.suffix == ".gguf":
            model = open_model(path, device=case.device)
        else:
            model = load_model(path, torch.bfloat16, fp8=kept, mapped=True, device=case.device)
        options = EngineOptions(
            enable_prefix_caching=False, max_num_seqs=case.batch, max_num_batched_tokens=CHUNK
        )
        self.engine = Engine(model, options=options)

    def rate(self) -> float:
        """See `Side.rate`."""
        from llamaseek.engine.request import Request, SamplingParams

        case, engine = self.case, self.engine
        length = case.prompt if case.batch == 1 else 1
        most = min(100_000, engine.model.config.vocab_size)
        prompts = torch.randint(100, most, (case.batch, length)).tolist()
        params = SamplingParams(max_tokens=case.steps + 2)
        requests = [Request(prompt=prompt, params=params) for prompt in prompts]
        for request in requests:
            engine.add(request)
        start = time.perf_counter()
        while not engine.step():  # a GPU's tokens are read after the next step is launched
            pass
        if not case.prefill:
            start = time.perf_counter()
            for _ in range(case.steps):
                engine.step()
        seconds = time.perf_counter() - start
        for request in requests:
            engine.cancel(request.id)
        return case.prompt / seconds if case.prefill else case.steps * case.batch / seconds


class LlamaCpp:
    """llama.cpp's own loop, through its C interface."""

    def __init__(self, case: Case, folder: Path) -> None:
        import llama_cpp

        self.case, self.lib = case, llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        path = str(folder / f"{case.gguf}.gguf").encode()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0 if case.device == "cpu" else 999
        self.model = llama_cpp.llama_model_load_from_file(path, params)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = case.prompt + 1792 * max(1, case.batch // 4)
        wanted.n_batch = wanted.n_ubatch = CHUNK
        wanted.n_threads = wanted.n_threads_batch = torch.get_num_threads()
        wanted.n_seq_max = case.batch
        self.context = llama_cpp.llama_init_from_model(self.model, wanted)
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def _run(self, positions: list[int], sequences: list[int], logits: list[int]) -> None:
        most = min(100_000, self.lib.llama_vocab_n_tokens(self.vocabulary))
        batch, tokens = self.batch, torch.randint(100, most, (len(positions),)).tolist()
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, positions[i], logits[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequences[i]
        assert self.lib.llama_decode(self.context, batch) == 0
        self.lib.llama_synchronize(self.context)

    def rate(self) -> float:
        """See `Side.rate`."""
        case = self.case
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        sequences, first = list(range(case.batch)), 1
        start = time.perf_counter()
        if case.batch == 1:
            first = case.prompt
            for begin in range(0, first, CHUNK):
                places = list(range(begin, min(begin + CHUNK, first)))
                last = [int(place == first - 1) for place in places]
                self._run(places, [0] * len(places), last)
        else:
            self._run([0] * case.batch, sequences, [1] * case.batch)
        if not case.prefill:
            start = time.perf_counter()
            for step in range(case.steps):
                self._run([first + step] * case.batch, sequences, [1] * case.batch)
        seconds = time.perf_counter() - start
        return case.prompt / seconds if case.prefill else case.steps * case.batch / seconds


class Transformers:
    """transformers' model and its own cache, a step a call."""

    def __init__(self, case: Case, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.case = case
        path = folder / case.ours
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        self.model: Any = model.eval().to(case.device)

    @torch.inference_mode()
    def rate(self) -> float:
        """See `Side.rate`."""
        case = self.case
        steps = max(2, case.steps // 4)
        tokens = torch.randint(100, 100000, (case.batch, case.prompt if case.batch == 1 else 1))
        tokens = tokens.to(case.device)
        case.settle()
        start = time.perf_counter()
        out = self.model(tokens, use_cache=True, logits_to_keep=1)
        case.settle()
        if not case.prefill:
            start = time.perf_counter()
            for _ in range(steps):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            case.settle()
        seconds = time.perf_counter() - start
        return case.prompt / seconds if case.prefill else steps * case.batch / seconds


class Limits:
    """What the machine can do: bytes read a second, or bf16 products a second."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.numbers = case, torch.ones(1 << 28, device=case.device)

    def rate(self) -> float:
        """Bytes a second, or floating-point operations."""
        from llamaseek.runtime.device import matrix_peak

        if self.case.prefill:
            device = torch.device(self.case.device)
            return matrix_peak(torch.bfloat16, device)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self.numbers.sum()
            self.case.settle()
            times.append(time.perf_counter() - start)
        return self.numbers.nbytes / min(times)


SIDES = {"ours": Ours, "llama.cpp": LlamaCpp, "transformers": Transformers, "limit": Limits}
PACKAGES = {"llama.cpp": "llama-cpp-python", "transformers": "transformers"}


def work(side: str, case: Case, folder: Path) -> None:
    """A side's process: a rate for every line that comes in."""
    torch.manual_seed(0)
    ready = SIDES[side](case, folder)
    ready.rate()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(ready.rate(), flush=True)


class Process:
    """The other end of `work`."""

    script = __file__

    def __init__(self, side: str, case: Case, folder: Path) -> None:
        command = [sys.executable, self.script, "--side", side, "--only", case.name]
        command += ["--folder", str(folder), "--device", case.device]
        self.pipe = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.rates: list[float] = []
        self._line()

    def _line(self) -> str:
        assert self.pipe.stdout is not None
        line = self.pipe.stdout.readline()
        if not line:
            raise SystemExit("a side failed; its error is above")
        return line

    def measure(self) -> None:
        """One more rate."""
        assert self.pipe.stdin is not None
        self.pipe.stdin.write("\n")
        self.pipe.stdin.flush()
        self.rates.append(float(self._line()))

    def close(self) -> float:
        """End it; the median."""
        assert self.pipe.stdin is not None
        self.pipe.stdin.close()
        self.pipe.wait()
        return statistics.median(self.rates)


def compare(case: Case, folder: Path, peers: list[str]) -> list[Row]:
    """Every side in turn, round after round; a row for each peer."""
    sides = [p for p in peers if p != "transformers" or case.transformers]
    running = {side: Process(side, case, folder) for side in ("ours", *sides, "limit")}
    for _ in range(ROUNDS):
        for process in running.values():
            process.measure()
    rates = {side: process.close() for side, process in running.items()}
    used, unit, scale = demand(case, folder)
    share = rates["ours"] * used / rates["limit"]
    rows = [row(case.name, "tokens/s", rates["ours"], p, rates[p], share) for p in sides]
    limit = Row(case.name, unit, rates["ours"] * used / scale, "limit", None, None, share)
    print(f"{case.name}: {limit.value:.0f} of {rates['limit'] / scale:.0f} {unit}")
    return [*rows, limit]


def demand(case: Case, folder: Path) -> tuple[float, str, float]:
    """What a token costs: bytes of weights read, or operations of the prompt's products."""
    from bench.shape_1b import SIZES, config
    from llamaseek.plan.flops import ACCUMULATE, matrix_flops

    embedding = SIZES["vocab_size"] * SIZES["hidden_size"]
    if case.prefill:
        return matrix_flops(config()) - ACCUMULATE * embedding, "GFLOP/s", 1e9
    size = sum(path.stat().st_size for path in (folder / case.ours).glob("*.safetensors"))
    tied = case.ours in ("bf16", "fp8")
    apart = 0 if tied else 2 * embedding  # beside a packed head, of which few rows
    return (size - apart) / case.batch, "GB/s", 1e9


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument(
        "--only", help="cases by name, with commas; --json then keeps the others' rows"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:1; a GPU if there is")
    options = parser.parse_args()
    chosen = cases(options.only, str(pick_device(options.device, "--device")))
    if options.side:
        work(options.side, chosen[0], options.folder)
        return
    from bench.shape_1b import make_gguf, make_ours

    gpu = chosen[0].device != "cpu"
    peers = [name for name, package in PACKAGES.items() if installed(package)]
    if gpu and "llama.cpp" in peers and not llama_cpp_has_gpu():
        peers.remove("llama.cpp")
    options.folder.mkdir(parents=True, exist_ok=True)
    make_ours(options.folder, ("8", "4", "fp8") if gpu else ("8", "4"))
    if "llama.cpp" in peers:
        make_gguf(options.folder)
    rows = kept_rows(options.json, chosen) if options.only else []
    for case in chosen:
        rows += compare(case, options.folder, peers)
    why = "has no GPU, or is not installed" if gpu else "not installed"
    report(rows, [f"{name} ({why})" for name in PACKAGES if name not in peers], options.json)


def cases(only: str | None, device: str) -> list[Case]:
    """Those that are asked for and run on this device."""
    known = [replace(case, device=device) for case in CASES if device != "cpu" or not case.gpu]
    chosen = [case for case in known if not only or case.name in only.split(",")]
    if not chosen:
        raise SystemExit(f"--only: {only!r}; allowed: {', '.join(c.name for c in known)}")
    return chosen


def llama_cpp_has_gpu() -> bool:
    """Whether llama.cpp was built for a GPU."""
    import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


def kept_rows(path: Path | None, chosen: list[Case]) -> list[Row]:
    """Rows of an earlier run for the cases that this one leaves out."""
    if path is None or not path.exists():
        return []
    names = {case.name for case in chosen}
    earlier = json.loads(path.read_text())["rows"]
    return [Row(**entry) for entry in earlier if entry["case"] not in names]


if __name__ == "__main__":
    main()
