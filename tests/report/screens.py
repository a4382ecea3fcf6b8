"""What every training command shows on terminals of 60, 80 and 120 columns, captured by tmux.

    python -m tests.report.screens FOLDER

runs the commands in FOLDER, where their recipes' `runs/…` go, and renews the captures of
docs/run-report.md. A window is made wider while a command runs: the progress is drawn anew.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from llamaseek.data.builtin.arithmetic import problem
from llamaseek.files import write_jsonl
from llamaseek.recipe.stages import STAGES

LLAMASEEK = [sys.executable, "-m", "llamaseek"]
WIDTHS = (60, 80, 120)
PAGE = Path(__file__).parents[2] / "docs" / "run-report.md"
BLOCK = re.compile(r"```text\n\$ llamaseek (?P<verb>\S+).*?```", re.DOTALL)
LEFT = re.compile(r"\d+/\d+ +[\d,]+ tok/s +\S+ left")
SESSION = "llamaseek-screens"
SUMS = (
    "model.init_from=runs/arithmetic-sft/model data.sources=[sums.jsonl] data.rows={} "
    "data.length=96"
)
COMMANDS = (
    "quickstart",
    "pretrain quickstart-deepseek_v3",
    "sft arithmetic-sft",
    f"reward quickstart-reward {SUMS}",
    f"dpo quickstart-dpo {SUMS}",
    f"ppo quickstart-ppo {SUMS} rollout.max_tokens=6",
    "grpo arithmetic-grpo",
    "finetune runs/arithmetic-sft/model sums.jsonl --full --epochs 20",
)
MADE_FIRST = {
    "runs/arithmetic-llama3": "pretrain arithmetic-llama3",
    "runs/arithmetic-sft": "sft arithmetic-sft",
    "runs/quickstart-reward": f"reward quickstart-reward {SUMS}",
}
"""The folders that commands start from, and what makes them."""


def write_sums(path: Path, count: int = 600) -> None:
    """Pairs of a sum's answer and one with a wrong digit, as the model of the sums writes them."""
    rng, rows = Random(5), []
    for _ in range(count):
        asked = problem(rng, "train")
        place, digits = rng.randrange(len(asked.answer)), list(asked.answer)
        digits[place] = rng.choice([d for d in "0123456789" if d != digits[place]])
        rows.append({"prompt": asked.question, "chosen": asked.answer, "rejected": "".join(digits)})
    write_jsonl(path, rows)


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
    write_sums(folder / "sums.jsonl")
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
