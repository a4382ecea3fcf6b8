"""What a fresh process imports before its first token."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, sys
from llamaseek.engine.engine import Engine
from llamaseek.engine.open import open_model
from llamaseek.text.tokenizer import Tokenizer
print(json.dumps(sorted(sys.modules)))
"""
UNNEEDED = (
    "datasets",
    "fastapi",
    "huggingface_hub",
    "llamaseek.plan",
    "llamaseek.recipe",
    "llamaseek.train",
    "pydantic",
    "transformers",
    "uvicorn",
)
"""Each takes from 20 to some hundred milliseconds; recipes and the planner build their schemas."""


def test_an_answer_needs_no_recipe_no_planner_and_no_server() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout))
    assert "torch" in found
    assert [name for name in UNNEEDED if name in found] == []
