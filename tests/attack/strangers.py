"""Malformed files end in one line and exit code 2, within 5 s and 500 MB.

`python -m tests.attack.strangers FOLDER` runs each case of its standard input in a fork of its own,
so that its time and memory can be told, and prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.attack.figures import Figure

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 5.0, 500
PROMISE = "one line on standard error, exit code 2, within 5 s and 500 MB"


@dataclass(frozen=True)
class Ended:
    """How a case ended; `megabytes` is its largest memory."""

    name: str
    code: int
    error: str
    seconds: float
    megabytes: int

    @property
    def kept(self) -> bool:
        """Whether that is what is promised."""
        line = self.error.startswith("error: ") and self.error.count("\n") == 1
        return (
            self.code == 2 and line and len(self.error) < 600
            and self.seconds <= SECONDS and self.megabytes <= MEGABYTES
        )  # fmt: skip


def command(words: list[str]) -> None:
    """Run a command in this process."""
    from llamaseek.cli.main import main
    from llamaseek.data.documents import read_documents
    from llamaseek.errors import UserError

    if words[0] != "read":
        sys.argv = ["llamaseek", *words]
        main()
        return
    try:
        deque(read_documents(words[1:]), maxlen=0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def forked(name: str, words: list[str], errors: Path) -> Ended:
    """The case in a fork, which is killed after three times the time allowed."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.alarm(int(3 * SECONDS))
            null, out = os.open(os.devnull, os.O_RDWR), os.open(errors, os.O_RDWR | os.O_CREAT)
            for number, file in enumerate((null, null, out)):
                os.dup2(file, number)
            command(words)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    error = errors.read_text(errors="replace")[:2000]
    return Ended(name, code, error, time.monotonic() - begun, used.ru_maxrss >> 10)


def run(place: Path, cases: list[tuple[str, list[str]]]) -> Iterator[Ended]:
    """The cases of a folder, see `malformed`."""
    import pyarrow.parquet  # noqa: F401 - loaded before the forks, which then measure the cases

    import llamaseek.cli.main
    import llamaseek.herd.inspection
    import llamaseek.recipe.load
    import llamaseek.text.tokenizer  # noqa: F401

    for number, (name, words) in enumerate(cases):
        words = [word.replace("{}", str(place / str(number))) for word in words]
        yield forked(name, words, place / f"{number}.err")


def measured(count: int) -> list[Ended]:
    """So many cases, in processes that have loaded nothing else."""
    env = os.environ | {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false"}

    def output(module: str, *words: str, given: str = "") -> str:
        command = [sys.executable, "-m", f"tests.attack.{module}", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=env, input=given, stdout=subprocess.PIPE, text=True,
            timeout=900, check=True,
        )  # fmt: skip
        return done.stdout

    with tempfile.TemporaryDirectory() as place:
        names = output("malformed", place, str(count))
        return [Ended(**each) for each in json.loads(output("strangers", place, given=names))]


def campaign() -> Iterator[Figure]:
    """About a minute."""
    found = measured(1000)
    kept = [each for each in found if each.kept]
    worst, most = max(each.seconds for each in found), max(each.megabytes for each in found)
    seen = f"{len(kept)} ended so; longest {worst:.1f} s, largest {most} MB"
    yield Figure(f"{len(found)} malformed files", seen, PROMISE, len(kept) == len(found))


if __name__ == "__main__":
    found = run(Path(sys.argv[1]), json.load(sys.stdin))
    print(json.dumps([asdict(each) for each in found]))
