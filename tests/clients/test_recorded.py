"""What clients sent in `make clients`, as they sent it: all of it is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.campaign import CLIENTS, RECORDED
from tests.clients.scripted import Scripted
from tests.serve.running import Running, running
from tests.serve.spoken import spoken_service

REQUESTS = [
    pytest.param(request, id=f"{path.stem}-{number}")
    for path in sorted(RECORDED.glob("*.json"))
    for number, request in enumerate(json.loads(path.read_text()))
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(spoken_service(Scripted())) as run:
        yield run
        assert run.idle()


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_a_client_sent_is_answered(server: Running, request_: dict[str, Any]) -> None:
    answer = server.client.request(request_["method"], request_["path"], json=request_["body"])
    assert answer.status_code == 200, answer.text
    if (request_["body"] or {}).get("stream"):
        kinds = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
        last = kinds[-1] if kinds else answer.text.strip().splitlines()[-1]
        if request_["path"].startswith("/api/"):  # Ollama's lines
            assert json.loads(last)["done"] is True
        else:
            assert last in ("data: [DONE]", "message_stop", "response.completed")
        assert "error" not in kinds and '"error": {' not in answer.text


def test_each_client_has_been_recorded() -> None:
    seen = {Path(each).stem for each in RECORDED.glob("*.json")}
    assert seen >= {*CLIENTS, "open_webui"} and len(REQUESTS) > 3 * len(seen)
