"""SmolLM2-135M-Instruct, fine-tuned three ways and read back by transformers and llama.cpp.

`make check-smollm2` runs it whole, on two cores within 25 minutes: SFT with LoRA on 500 rows of
GSM8K, DPO on the 60 pairs of pairs.jsonl, GRPO towards short answers. `--share 0.1` runs a tenth
of the steps. LLAMASEEK_SHARED_DATA names the folder that has gsm8k/train.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import llamaseek
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.text.chat import encode_chat
from llamaseek.text.tokenizer import Tokenizer
from tests.checkpoints.gguf_files import SMOLLM2

PAIRS = Path(__file__).parent / "pairs.jsonl"
GSM8K = Path(os.environ.get("LLAMASEEK_SHARED_DATA", "/nowhere")) / "gsm8k" / "train.jsonl"
BASE = str(SMOLLM2)
LLAMA_CPP = os.environ.get("LLAMASEEK_LLAMA_CPP", sys.executable)
"""A Python that has llama-cpp-python."""
PROMPTS = (
    "Should I water a cactus every day?",
    "What is the capital of France?",
    "Tom has 3 boxes of 4 pens. How many pens does he have?",
    "Name three primary colours.",
)
TOKENS = 48
CLOSE = 1e-3  # logits whose order may differ

Overrides = dict[str, Any]
SHARED: Overrides = {
    "model.init_from": BASE,
    "lora.rank": 16,
    "lora.alpha": 32,
    "train.weight_decay": 0.0,
    "train.warmup": 2,
    "train.save_every": 1000,
}


def sft(folder: Path, share: float) -> tuple[llamaseek.Run, float, float]:
    """Loss of held-out worked answers before and after two epochs of 500 rows."""
    rows = GSM8K.read_text(encoding="utf-8").splitlines()[: max(60, round(500 * share))]
    (folder / "gsm8k.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    steps = max(4, round(44 * share))
    run = train(
        folder,
        "sft",
        {
            "data.sources": [str(folder / "gsm8k.jsonl")],
            "data.columns": {"prompt": "question", "completion": "answer"},
            "data.holdout": 0.1,
            "data.length": 640,
            "train.objective": "sft",
            "train.steps": steps,
            "train.batch": 4,
            "train.lr": 1e-3,
            "train.eval_every": steps,
        },
    )
    held = [json.loads(row) for row in rows[-round(0.1 * len(rows)) :]]
    return run, answer_loss(llamaseek.load(BASE), held), answer_loss(run.model(), held)


def dpo(folder: Path, share: float) -> tuple[llamaseek.Run, float, float]:
    """Share of held-out pairs whose better answer is likelier, before and after."""
    steps = max(4, round(40 * share))
    run = train(
        folder,
        "dpo",
        {
            "data.sources": [str(PAIRS)],
            "data.holdout": 0.25,
            "data.length": 128,
            "train.objective": "dpo",
            "train.steps": steps,
            "train.batch": 8,
            "train.lr": 2e-4,
            "train.eval_every": steps,
        },
    )
    held = [json.loads(line) for line in PAIRS.read_text().splitlines()][-15:]
    return run, preferred(llamaseek.load(BASE), held), preferred(run.model(), held)


def grpo(folder: Path, share: float) -> tuple[llamaseek.Run, float, float]:
    """Share of held-out questions answered in at most 60 characters, before and after."""
    questions = [{"prompt": json.loads(line)["prompt"]} for line in PAIRS.read_text().splitlines()]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    steps = max(3, round(24 * share))
    run = train(
        folder,
        "grpo",
        {
            "data.sources": [str(folder / "questions.jsonl")],
            "data.holdout": 0.25,
            "data.length": 128,
            "rollout.samples": 8,
            "rollout.max_tokens": 48,
            "rollout.rewards": [{"kind": "regex", "pattern": r"\A.{1,60}\Z"}],
            "rollout.missing_end": -0.5,
            "train.steps": steps,
            "train.batch": 64,
            "train.micro_batch": 16,
            "train.lr": 1e-4,
            "train.eval_every": steps,
        },
    )
    before, after = both(run, "val_accuracy")
    return run, before, after


def train(folder: Path, stage: str, own: Overrides) -> llamaseek.Run:
    """A run of the stage in `folder`/`stage`."""
    recipe = folder / f"{stage}.yaml"
    recipe.write_text(f"name: smollm2-{stage}\nstage: {stage}\n")
    return llamaseek.train(recipe, {**SHARED, **own, "out": str(folder / stage)})


def both(run: llamaseek.Run, name: str) -> tuple[float, float]:
    """The first and the last value of a held-out figure."""
    found = [line[name] for line in run.metrics if name in line]
    return found[0], found[-1]


def preferred(model: llamaseek.Model, pairs: list[dict[str, str]]) -> float:
    """The share of the pairs whose chosen answer has the higher probability."""
    better = [answer_logprob(model, row["prompt"], row["chosen"]) for row in pairs]
    worse = [answer_logprob(model, row["prompt"], row["rejected"]) for row in pairs]
    return sum(a > b for a, b in zip(better, worse, strict=True)) / len(pairs)


def answer_loss(model: llamaseek.Model, rows: list[dict[str, str]]) -> float:
    """Nats a token of GSM8K's worked answers."""
    total, count = 0.0, 0
    for row in rows:
        total -= answer_logprob(model, row["question"], row["answer"])
        count += len(model.tokenizer.encode(row["answer"])) + 1
    return total / count


def answer_logprob(model: llamaseek.Model, prompt: str, answer: str) -> float:
    """The log-probability of the assistant's whole answer, its end included."""
    head = prompt_ids(model.tokenizer, prompt)
    ids = [*head, *model.tokenizer.encode(answer), *model.tokenizer.stop_ids[:1]]
    import torch

    with torch.no_grad():
        hidden = model.network(torch.tensor([ids]), torch.arange(len(ids))[None])
        logprobs = model.network.logits(hidden)[0, len(head) - 1 : -1].float().log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(ids[len(head) :])[:, None]).sum())


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A user's turn, and the assistant's opened."""
    message = {"role": "user", "content": prompt}
    return list(encode_chat(tokenizer, [message], add_generation_prompt=True).ids)


def same_tokens(run: llamaseek.Run) -> dict[str, str]:
    """How transformers and llama.cpp answer with the merged folder: equal, or where they differ."""
    folder = run.model_folder
    model = llamaseek.load(folder, dtype="fp32")
    prompts = [prompt_ids(model.tokenizer, prompt) for prompt in PROMPTS]
    params = llamaseek.SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    from llamaseek.engine.request import Request

    outputs = model.engine.generate(Request(prompt=ids, params=params) for ids in prompts)
    answers = [output.answers[0].tokens for output in outputs]
    return {
        "transformers": in_transformers(folder, prompts, answers),
        "llama.cpp": in_llama_cpp(folder, prompts, answers),
    }


def in_transformers(folder: Path, prompts: list[list[int]], answers: list[list[int]]) -> str:
    """Whether each token is transformers' best, or within CLOSE of it."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    worst = 0.0
    for head, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*head, *answer]])).logits[0, len(head) - 1 : -1]
        behind = logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        worst = max(worst, float(behind.max()))
    return "equal" if worst < CLOSE else f"another token is {worst:.3g} better"


def in_llama_cpp(folder: Path, prompts: list[list[int]], answers: list[list[int]]) -> str:
    """The same of llama.cpp, from a GGUF file in float32."""
    path = folder.parent / "merged.gguf"
    GgufConversion(folder, path, "f32").run()
    asked = json.dumps({"path": str(path), "prompts": prompts, "answers": answers})
    code = Path(__file__).with_name("in_llama_cpp.py")
    done = subprocess.run([LLAMA_CPP, code], input=asked, capture_output=True, text=True)
    path.unlink()
    if done.returncode == 3:
        return "skipped: llama-cpp-python is not installed (LLAMASEEK_LLAMA_CPP names a Python)"
    done.check_returncode()
    worst = float(done.stdout)
    return "equal" if worst < 10 * CLOSE else f"another token is {worst:.3g} better"


PARTS: dict[str, Callable[[Path, float], tuple[llamaseek.Run, float, float]]] = {
    "sft": sft,
    "dpo": dpo,
    "grpo": grpo,
}
WANTED: dict[str, Callable[[float, float], bool]] = {
    "sft": lambda before, after: after <= 0.9 * before,
    "dpo": lambda before, after: before <= 0.65 and after >= 0.8,
    "grpo": lambda before, after: before <= 0.2 and after >= 0.6,
}
"""What a whole run must reach."""


def measure(name: str, folder: Path, share: float) -> dict[str, Any]:
    """One part's figures, and whether they and the peers are as they should be."""
    started = monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    run, before, after = PARTS[name](folder, share)
    found: dict[str, Any] = {"part": name, "before": before, "after": after}
    found |= same_tokens(run)
    found["seconds"] = round(monotonic() - started)
    peers = all(found[peer].split(":")[0] in ("equal", "skipped") for peer in PEERS)
    found["passed"] = peers and WANTED[name](before, after)
    return found


PEERS = ("transformers", "llama.cpp")


def main() -> int:
    """Run the parts that are named, print a line of JSON each; 1 where one misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps")
    arguments = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts or PARTS:
            found = measure(name, Path(folder) / name, arguments.share)
            print(json.dumps(found), flush=True)
            passed = passed and found["passed"]
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
