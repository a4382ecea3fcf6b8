"""What a fresh process imports before its first token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llamaseek.checkpoints.hf import save_model
from tests.models.shapes import tiny_model

CODE = """
import json, sys
from llamaseek.engine.engine import Engine
from llamaseek.engine.open import open_model
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.text.tokenizer import Tokenizer
engine = Engine(open_model(sys.argv[1], device="cpu"))
engine.generate([Request(prompt=[1, 2, 3], params=SamplingParams(max_tokens=1))])
print(json.dumps(sorted(sys.modules)))
"""
UNNEEDED = (
    "datasets",
    "fastapi",
    "huggingface_hub",
    "llamaseek.plan.planner",
    "llamaseek.recipe",
    "llamaseek.train",
    "pydantic",
    "sympy",
    "transformers",
    "uvicorn",
)
"""Each takes from 20 to some hundred milliseconds; recipes and the planner build their schemas, and
PyTorch's compiler needs sympy."""


def test_an_answer_needs_no_recipe_no_planner_and_no_compiler(tmp_path: Path) -> None:
    save_model(tiny_model("llama3"), tmp_path / "model")
    command = [sys.executable, "-c", CODE, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout))
    assert "torch" in found
    assert [name for name in UNNEEDED if name in found] == []
