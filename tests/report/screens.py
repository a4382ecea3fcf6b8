"""What every training command shows on terminals of 60, 80 and 120 columns, captured by tmux.

    python -m tests.report.screens FOLDER

runs the commands in FOLDER, where their recipes' `runs/…` go, and renews the captures of
docs/run-report.md. A window is made wider while a command runs: the progress is drawn anew.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llamaseek.recipe.stages import STAGES

LLAMASEEK = [sys.executable, "-m", "llamaseek"]
WIDTHS = (60, 80, 120)
PAGE = Path(__file__).parents[2] / "docs" / "run-report.md"
BLOCK = re.compile(r"```text\n\$ llamaseek (?P<verb>\S+).*?```", re.DOTALL)
LEFT = re.compile(r"\d+/\d+ +[\d,]+ tok/s +\S+ left")
SESSION = "llamaseek-screens"
TICKETS = Path(__file__).parents[1] / "data" / "tickets" / "tickets.csv"
COMMANDS = (
    "quickstart",
    "pretrain quickstart-deepseek_v3",
    "sft quickstart-sft",
    "reward quickstart-reward",
    "dpo quickstart-dpo",
    "ppo quickstart-ppo",
    "grpo arithmetic-grpo",
    "finetune runs/quickstart-llama3/instruct/model tickets.csv",
)
MADE_FIRST = {
    "runs/quickstart-llama3/dpo": "quickstart",
    "runs/quickstart-reward": "reward quickstart-reward",
    "runs/arithmetic-llama3": "pretrain arithmetic-llama3",
    "runs/arithmetic-sft": "sft arithmetic-sft",
}
"""The folders that commands start from, and what makes them."""


def tmux(*words: str) -> str:
    """What a tmux server of our own answers."""
    done = subprocess.run(["tmux", "-L", SESSION, *words], capture_output=True, text=True)
    return done.stdout


def screen() -> list[str]:
    """The lines on the terminal."""
    return tmux("capture-pane", "-p", "-t", SESSION).rstrip().splitlines()


def progress(lines: Sequence[str]) -> list[str]:
    """The bar and the line below it, as the terminal shows them now."""
    places = [number for number, line in enumerate(lines) if "━" in line]
    return list(lines[places[-1] :]) if places else []


def waited(enough: int, seconds: float = 400) -> list[str]:
    """The progress once so many steps are done and held-out rows were evaluated."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        shown = progress(screen())
        done = re.search(r"(\d+)/\d+", shown[0]) if shown else None
        if done and int(done[1]) >= enough and LEFT.search(shown[0]):
            return shown
        time.sleep(0.2)
    raise TimeoutError("\n".join(screen()))


def captured(command: str, folder: Path) -> dict[int, list[str]]:
    """The progress of a command at each width; the command is interrupted after that."""
    out = ["out=runs/screens"] if command.split()[0] in STAGES else ["--out", "runs/screens"]
    program = shlex.join([*LLAMASEEK, *command.split(), *out, "--overwrite"])
    tmux("new-session", "-d", "-s", SESSION, "-x", str(WIDTHS[0]), "-y", "24", "-c", str(folder),
         f"{program}; read wait")  # fmt: skip
    found = {}
    try:
        for place, width in enumerate(WIDTHS):
            tmux("resize-window", "-t", SESSION, "-x", str(width))
            found[width] = waited(6 + 2 * place)
            time.sleep(1.5)  # until the bar is drawn anew
            found[width] = waited(6 + 2 * place)
        return found
    finally:
        tmux("send-keys", "-t", SESSION, "C-c")
        time.sleep(3)
        tmux("kill-session", "-t", SESSION)


def block(command: str, found: dict[int, list[str]]) -> str:
    """A command's captures as the page has them."""
    shown = "\n\n".join("\n".join(lines) for lines in found.values())
    return f"```text\n$ llamaseek {command}\n{shown}\n```"


def main(folder: Path) -> None:
    """Make what the commands start from, run them, and put the captures into the page."""
    shutil.copy(TICKETS, folder)
    for made, command in MADE_FIRST.items():
        if not (folder / made / "model").is_dir():
            subprocess.run([*LLAMASEEK, *command.split(), "--overwrite"], cwd=folder, check=True)
    made = {}
    for command in COMMANDS:
        made[command.split()[0]] = block(command, captured(command, folder))
        print(made[command.split()[0]], flush=True)
        PAGE.write_text(BLOCK.sub(lambda old: made.get(old["verb"], old[0]), PAGE.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
