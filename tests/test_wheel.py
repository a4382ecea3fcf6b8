"""A wheel builds, and installed elsewhere it finds its recipes and its page template."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
import llamaseek
assert llamaseek.__file__.startswith(sys.argv[1]), llamaseek.__file__
from llamaseek.recipe.reading import bundled, find_recipe
from llamaseek.recipe.load import load_recipe
from llamaseek.data.clean.recipe import load_clean_recipe
for name, path in bundled().items():
    assert str(path).startswith(sys.argv[1]), path
    if "stage: data" in path.read_text():
        load_clean_recipe(find_recipe(name), ["sources.web=pages"])
    else:
        load_recipe(find_recipe(name), [])
from jinja2 import Environment, PackageLoader
PackageLoader("llamaseek.report", ".").get_source(Environment(), "page.html.j2")
from llamaseek.kernels.build import SOURCES, library_path
assert str(SOURCES).startswith(sys.argv[1]) and (SOURCES / "ops.cpp").exists()
library_path()
print(len(bundled()))
"""
USER = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llamaseek
from llamaseek import Logprob, Model, Recipe, Run, SamplingParams, UserError


def use(folder: str) -> list[float]:
    model: Model = llamaseek.load(folder, device="cpu", dtype="fp32", adapter=None)
    one: str = model.generate("hello", max_tokens=3, temperature=0.5, stop=["x"], seed=1)
    many: list[str] = model.generate(["hello", one], SamplingParams(max_tokens=3), top_p=0.9)
    talk: list[dict[str, Any]] = [{"role": "user", "content": many[0]}]
    answer: dict[str, Any] = model.chat(talk, tools=[{"name": "f"}])
    answers: list[dict[str, Any]] = model.chat([talk, [*talk, answer]], seed=None)
    pieces: Iterator[str] = model.stream(talk, max_tokens=3)
    scores: list[Logprob] = model.logprobs("".join(pieces), top=2)
    rewards: list[float] = model.reward([talk, answers])
    state: float = float(model.embed("x").norm())
    return [model.reward(talk), state, scores[0].logprob, *rewards]


def train(recipe: Recipe) -> Path:
    try:
        run: Run = llamaseek.train(recipe.with_overrides({"train.steps": 3}), overwrite=True)
    except UserError:
        run = llamaseek.train(Recipe.load("quickstart-sft"), ["train.lr=1e-3"], resume="auto")
    loss: Any = run.metrics[-1]["loss"]
    answer: dict[str, Any] = llamaseek.plan("llama-3.1-8b", gpu="h100-80gb", task="sft")
    print(loss, answer["gpus"], llamaseek.__version__, run.model().config.hidden_size)
    return run.model_folder


llamaseek.load("x").generate("hello", max_tokens="3")  # type: ignore[call-overload]
"""


@pytest.mark.slow
def test_wheel_builds_and_installs_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("llamaseek-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=300)
    run = [sys.executable, "-I", "-c", CHECK, str(site)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(list((ROOT / "llamaseek/recipe/bundled").glob("*.yaml")))
    check_types(site, tmp_path)


def check_types(site: Path, folder: Path) -> None:
    """mypy --strict has nothing to say of a file that uses every public name, from the wheel."""
    (folder / "user.py").write_text(USER)
    (folder / "mypy.ini").write_text("[mypy]\n")
    run = [sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "user.py"]
    environment = {**os.environ, "MYPYPATH": "", "PYTHONPATH": str(site)}
    found = subprocess.run(
        run, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert str(ROOT) not in found.stdout
