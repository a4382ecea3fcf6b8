"""Constraints that compile for ever, or whose every mask takes long, cost their own request alone.

The first of each list is the public report's; the others are relatives of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamaseek.checkpoints.hf import save_model
from llamaseek.engine.constrain import Constraint, Grammars
from llamaseek.serve.compiling import Compiler
from tests.engine.walk import Walk
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER, Running, make_service, running
from tests.serve.test_malformed import CHAT, COMPLETIONS, HELLO, check, schema

PRIME = {"type": "integer", "multipleOf": 9999991}
ENDLESS: dict[str, dict[str, Any]] = {
    "one multiple": {"response_format": schema(PRIME)},
    "two multiples": {
        "response_format": schema(
            {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}
        )
    },
    "in a map": {"response_format": schema({"additionalProperties": PRIME, "type": "object"})},
    "in a grammar": {
        "response_format": {"type": "lark", "lark": f'start: "x" %json {json.dumps(PRIME)}'}
    },
    "in a tool": {
        "tools": [
            {"type": "function", "function": {
                "name": "f", "strict": True,
                "parameters": {"type": "object", "properties": {"n": PRIME}},
            }}
        ]
    },
}  # fmt: skip
SLOW = {
    "sums": 'start: s "!"\ns: s s | s s s | /[a-z ]/',
    "palindromes": "start: p\np: /[a-z]/ p /[a-z]/ | /[a-z]/ | p p",
    "empty cycles": 'start: a\na: a a | b\nb: b a | "x" | ',
    "nested repeats": 'start: a{200}\na: b{200}\nb: c{200}\nc: "x"?',
}
BOUNDED = r"takes longer than (1 s of processor time|5 s)|needs more than 256 MiB of memory"
"""What is said of a constraint that would compile for ever: a fast core fills its memory first."""
FINE = {"response_format": schema({"type": "boolean"})}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    sizes = {"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 1024}
    with running(make_service(tiny_model("llama3", **sizes), max_num_seqs=8)) as run:
        assert fine(run) < 10  # the workers are started
        yield run
        assert run.idle()


def fine(server: Running) -> float:
    """The seconds that a harmless constrained answer takes."""
    begun = time.monotonic()
    answer = server.post(CHAT, messages=HELLO, max_tokens=20, **FINE)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] in ("true", "false")
    return time.monotonic() - begun


def resident() -> int:
    """MiB of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


@pytest.mark.parametrize("name", ENDLESS)
def test_what_compiles_for_ever_is_refused_in_bounded_time(server: Running, name: str) -> None:
    before, begun = resident(), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        # Twice at once; none of it is remembered yet.
        asked = [pool.submit(server.post, CHAT, messages=HELLO, **ENDLESS[name]) for _ in range(2)]
        worst = 0.0
        while not all(each.done() for each in asked):
            worst = max(worst, fine(server))
    for each in asked:
        error = check(each.result(), 400, next(iter(ENDLESS[name])))
        assert re.search(BOUNDED, error["message"]), error
    assert time.monotonic() - begun < 15 and worst < 3
    again = time.monotonic()
    check(server.post(CHAT, messages=HELLO, **ENDLESS[name]), 400)
    assert time.monotonic() - again < 7
    assert resident() - before < 50
    assert workers(server) == 0


def workers(server: Running) -> int:
    """Processes that hold a grammar, once they have had the time to end."""
    grammars = server.service.engine.grammars
    assert grammars is not None and server.idle()
    return grammars.start().running


@pytest.mark.parametrize(("name", "stream"), [("sums", True), *((name, False) for name in SLOW)])
def test_masks_over_their_budget_fail_their_own_answer(
    server: Running, name: str, stream: bool
) -> None:
    wanted = {"type": "lark", "lark": SLOW[name]}
    body = {"prompt": "x", "max_tokens": 900, "temperature": 0, "stream": stream}
    letters = {str(token): -100 for token in TOKENIZER.stop_ids}
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            server.post, COMPLETIONS, **body, response_format=wanted, logit_bias=letters
        )
        worst = 0.0
        while not asked.done():
            start = time.monotonic()
            assert server.post(COMPLETIONS, prompt="x", max_tokens=2).status_code == 200
            worst = max(worst, time.monotonic() - start)
    answer = asked.result()
    text = answer.text.split("\n\n")[-3].removeprefix("data: ") if stream else answer.text
    error = json.loads(text)["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == "response_format"
    assert error["message"].startswith("constraint: ")
    assert time.monotonic() - begun < 60 and worst < 2
    assert workers(server) == 0 and fine(server) < 3


def test_what_is_known_costs_nothing_and_lateness_is_not_remembered() -> None:
    grammars = Grammars(TOKENIZER)
    good, bad = (Constraint("regex", text) for text in ("[a-c]{3}", "[a-c"))
    for _ in range(3):
        grammars.check(good)
        with pytest.raises(Exception, match="constraint: regex"):
            grammars.check(bad)
    pool = grammars.start()
    pool.close()
    grammars.check(good)
    assert pool.running == 0
    late = Constraint("json_schema", json.dumps(PRIME))
    with pytest.raises(Exception, match=r"takes longer than 0.05 s"):
        grammars.check(late, 0.05)
    with pytest.raises(Exception, match=BOUNDED):
        grammars.check(late)
    grammars.close()


def test_answers_of_one_request_share_its_worker() -> None:
    grammars = Grammars(TOKENIZER)
    session = grammars.open(Constraint("regex", "ab|ac"))
    first, second = session.matcher(), session.matcher()
    while not (first.ready and second.ready):
        grammars.collect(idle=True)
    for token in TOKENIZER.encode("ab")[:1]:
        first.accept(token)
    assert second.ready and grammars.start().running == 1
    grammars.release(session)
    walk = Walk(grammars, Constraint("regex", "ab"))
    assert all(map(walk.accept, TOKENIZER.encode("ab"))) and walk.matcher.ended
    assert not walk.accept(TOKENIZER.encode("c")[0])
    walk.close()
    grammars.close()


def test_too_many_at_once_are_told_to_come_again(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service.compiler, "_tasks", range(10_000))
    answer = server.post(COMPLETIONS, prompt="x", **FINE)
    assert check(answer, 429)["code"] == "queue_full"
    assert isinstance(server.service.compiler, Compiler)


def test_sigterm_ends_a_server_that_compiles(tmp_path: Path) -> None:
    save_model(tiny_model("llama3", vocab_size=TOKENIZER.vocab_size), tmp_path)
    TOKENIZER.save(tmp_path)
    command = [sys.executable, "-m", "llamaseek", "serve", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--name", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    body = {"model": "tiny", "prompt": "x", **ENDLESS["one multiple"]}
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, url + COMPLETIONS, json=body) for _ in range(4)]
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(30) == 0 and time.monotonic() - begun < 10
        for each in asked:
            each.exception(30)
    process.stdout.close()


def test_sigterm_gives_up_late_masks(server: Running) -> None:
    """Beside a stop signal's `drain`, which lets other answers go on.

    The best token each time, as above: a sampled answer may end before a mask of it is late.
    """
    wanted = {"type": "lark", "lark": SLOW["sums"]}
    letters = {str(token): -100 for token in TOKENIZER.stop_ids}
    body = {"prompt": "x", "max_tokens": 900, "temperature": 0}
    body |= {"logit_bias": letters, "response_format": wanted}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.post, COMPLETIONS, **body)
        while not asked.done():
            server.service.background.end_late("the server is shutting down")
            time.sleep(0.05)
    error = check(asked.result(), 503)
    assert error["message"] == "the server is shutting down"
    assert workers(server) == 0 and fine(server) < 3
