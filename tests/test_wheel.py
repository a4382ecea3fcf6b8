"""A wheel builds, and installed elsewhere it finds its recipes and its page template."""

from __future__ import annotations

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
from llamaseek.recipe_files import bundled, find_recipe
from llamaseek.recipe import load_recipe
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
