"""Unchanged clients from PyPI and npm against our server, each in an environment of its own.

`python -m tests.clients.campaign FOLDER [NAME...]` installs what is not there yet into FOLDER, runs
the scripts of all clients, or of those named, prints a table and renews the recorded requests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llamaseek.checkpoints.sources import find_source
from llamaseek.engine.open import open_model
from llamaseek.engine.options import EngineOptions
from llamaseek.errors import UserError
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service, make_service
from tests.clients.scripted import Recorder, Scripted
from tests.serve.running import running
from tests.serve.spoken import spoken_service

HERE = Path(__file__).parent
SCRIPTS, RECORDED = HERE / "scripts", HERE / "recorded"
SECONDS = 420  # of one script; Open WebUI takes a minute or more to start
CLIENTS: dict[str, tuple[str, ...]] = {
    "openai_python": ("openai",),
    "openai_node": ("openai", "zod"),
    "anthropic_python": ("anthropic",),
    "langchain": ("langchain-openai",),
    "litellm_python": ("litellm",),
    "agents_python": ("openai-agents",),
    "autogen": ("autogen-agentchat", "autogen-ext[openai]"),
    "llamaindex": ("llama-index-llms-openai-like",),
    "instructor_python": ("instructor",),
    "ollama_python": ("ollama",),
    "lm_eval_python": ("lm-eval[api]",),
    "open_webui": ("open-webui",),
}
"""The scripts, and the packages that each needs; the first is the client."""


LARGE = {"open_webui"}
"""Clients that need PyTorch; it is lent to them, since its build for CUDA is larger than they."""


def lend_torch(home: Path) -> None:
    """Link this environment's PyTorch into a new one, where pip finds it."""
    here = Path(torch.__file__).parents[1]
    site = home / here.relative_to(sys.prefix)
    for name in (
        "torch",
        "functorch",
        "torchgen",
        *(p.name for p in here.glob("torch-*.dist-info")),
    ):
        (site / name).symlink_to(here / name)


def installed(folder: Path, name: str) -> tuple[list[str], str]:
    """The command of a client's script, and the client's version; installs what is missing."""
    packages, home = CLIENTS[name], folder / name
    client = packages[0].partition("[")[0]
    if name.endswith("_node"):
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "node_modules").exists():
            print(f"installing {client} from npm", flush=True)
            subprocess.run(["npm", "install", "--silent", *packages], cwd=home, check=True)
        script = shutil.copy(SCRIPTS / f"{name}.mjs", home)
        package = json.loads((home / "node_modules" / client / "package.json").read_text())
        return ["node", str(script)], f"{client} {package['version']} (npm)"
    python = home / "bin" / "python"
    if not python.exists():
        print(f"installing {client}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        if name in LARGE:
            lend_torch(home)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    ask = f"from importlib.metadata import version; print(version({client!r}))"
    version = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    return [str(python), str(SCRIPTS / f"{name}.py")], f"{client} {version.stdout.strip()}"


@contextmanager
def served(service: Service) -> Iterator[tuple[str, Recorder]]:
    """The address of a service, and what it is asked."""
    with running(service, Recorder) as run:
        recorder = run.server.config.app
        assert isinstance(recorder, Recorder)
        yield run.url, recorder


def run_script(command: list[str], url: str, model: str, kind: str) -> list[dict[str, Any]]:
    """What a script says of its steps; a failed one where it says nothing to the end."""
    environment = {**os.environ, "PYTHONPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
    try:
        done = subprocess.run(
            [*command, url, model, kind],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return [{"step": "end", "ok": False, "seen": f"took more than {SECONDS} s"}]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    if done.returncode or (not lines and kind == "scripted"):
        lines.append({"step": "start", "ok": False, "seen": done.stderr[-600:]})
    return lines


def real_service() -> Service | None:
    """SmolLM2, where it has been downloaded."""
    try:
        folder = find_source(os.environ.get("LLAMASEEK_SMOLLM2", "smollm2-135m-instruct"))
    except UserError:
        return None
    options = ServeOptions(port=0, name="smollm2")
    return make_service(open_model(folder), folder, options, EngineOptions())


def run_all(folder: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The steps of each client, by its name and version."""
    commands = {name: installed(folder, name) for name in names}
    found: dict[str, list[dict[str, Any]]] = {}
    with served(spoken_service(Scripted())) as (url, recorder):
        for name, (command, title) in commands.items():
            found[title] = printed(title, run_script(command, url, "tiny", "scripted"))
            record(name, recorder.take())
    real = real_service()
    if real is None:
        print("SmolLM2 is not here: llamaseek download smollm2-135m-instruct")
        return found
    with served(real) as (url, _):
        for command, title in commands.values():
            found[title] += printed(
                f"{title}, SmolLM2", run_script(command, url, "smollm2", "real")
            )
    return found


def printed(title: str, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps, after a line that says how many of them worked, if there are any."""
    if steps:
        print(f"{title}: {sum(each['ok'] for each in steps)} of {len(steps)} steps", flush=True)
    return steps


def record(name: str, requests: list[dict[str, Any]]) -> None:
    """Keep the requests of a client for the tests."""
    RECORDED.mkdir(exist_ok=True)
    text = json.dumps(requests, ensure_ascii=False, indent=1)
    (RECORDED / f"{name}.json").write_text(text + "\n")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row a client, as docs/serving.md has it."""
    rows = ["| client | seen to work | with SmolLM2 |", "|---|---|---|"]
    for title, steps in found.items():
        worked = [each["step"] for each in steps if each["ok"]]
        real = [step.removeprefix("real_") for step in worked if step.startswith("real_")]
        rest = [step for step in worked if not step.startswith("real_")]
        cells = (", ".join(each).replace("_", " ") for each in (rest, real or ["not asked"]))
        rows.append(f"| {' | '.join((title, *cells))} |")
    return "\n".join(rows)


def main() -> None:
    """Run the clients that are named; exit code 1 if a step failed."""
    start = time.monotonic()
    found = run_all(Path(sys.argv[1]), sys.argv[2:] or list(CLIENTS))
    print(table(found))
    steps = [(title, each) for title, steps in found.items() for each in steps]
    failed = [(title, each) for title, each in steps if not each["ok"]]
    for title, each in failed:
        print(title, each["step"], each["seen"], *each.get("where", []), sep="\n  ")
    minutes = (time.monotonic() - start) / 60
    worked = f"{len(steps) - len(failed)} of {len(steps)} steps of {len(found)} clients"
    print(f"{worked} work; {minutes:.1f} minutes")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
