"""Open WebUI: its server is started before ours and asked as its page asks it.

Its first account is made as on its first screen; all that it keeps is in a folder of its own.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from steps import KEY, MODEL, QUESTION, STORY, URL, WEATHER, holds, same, step

START = 240  # seconds
USER = {"name": "Ada", "email": "ada@example.com", "password": "an engine of 1843"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def ask(path, body=None):
    """What Open WebUI answers; the text of a stream."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(page + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    return text if body and body.get("stream") else json.loads(text)


def chat_with(messages, **rest):
    return ask("/api/chat/completions", {"model": MODEL, "messages": messages, **rest})


def pieces(text):
    """The texts of a stream of chunks."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    choices = [each for line in lines for each in json.loads(line).get("choices", [])]
    return "".join(each["delta"].get("content") or "" for each in choices)


def said(*texts):
    return [{"role": "user", "content": text} for text in texts]


@contextmanager
def open_webui(folder):
    """Its address, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "DATA_DIR": folder,
        "WEBUI_SECRET_KEY": "secret",
        "OPENAI_API_BASE_URL": f"{URL}/v1",
        "OPENAI_API_KEY": KEY,
        "ENABLE_OLLAMA_API": "False",
        "RAG_EMBEDDING_ENGINE": "openai",  # its own would be fetched from the Hub
        "RAG_OPENAI_API_BASE_URL": f"{URL}/v1",
        "HF_HUB_OFFLINE": "1",
        "OFFLINE_MODE": "True",
        "DO_NOT_TRACK": "True",
        "ANONYMIZED_TELEMETRY": "False",
    }
    command = [Path(sys.executable).with_name("open-webui"), "serve", "--host", "127.0.0.1"]
    with open(Path(folder) / "log.txt", "w") as log:
        server = subprocess.Popen(
            [*map(str, command), "--port", str(port)],
            env={**os.environ, **settings},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/health", server, Path(log.name))
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_for(address, server, log):
    """Return when an address answers."""
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"Open WebUI did not start: {log.read_text()[-500:]}")


token = ""
with tempfile.TemporaryDirectory() as place, open_webui(place) as page:
    token = ask("/api/v1/auths/signup", USER)["token"]

    @step
    def models():
        ask("/openai/verify", {"url": f"{URL}/v1", "key": KEY})  # the button beside a connection
        return holds([each["id"] for each in ask("/api/models")["data"]], MODEL)

    @step
    def chat():
        ask("/api/models")
        answer = chat_with(said("Hello"), stream=False)
        return same(answer["choices"][0]["message"]["content"], STORY)

    @step
    def chat_stream():
        talk = [{"role": "system", "content": "Be brief."}, *said("Hello")]
        options = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 100, "seed": 1, "stop": ["###"]}
        return same(pieces(chat_with(talk, stream=True, params=options)), STORY)

    @step
    def chat_tools():
        talk = said("Weather in Bern?")
        first = ask(
            "/openai/chat/completions", {"model": MODEL, "messages": talk, "tools": [TOOL]}
        )["choices"][0]["message"]
        (call,) = first["tool_calls"]
        same(json.loads(call["function"]["arguments"]), {"city": "Bern"})
        result = {"role": "tool", "tool_call_id": call["id"], "content": WEATHER}
        body = {"model": MODEL, "messages": [*talk, first, result], "tools": [TOOL]}
        answer = ask("/openai/chat/completions", body)
        return same(answer["choices"][0]["message"]["content"], STORY)

    @step
    def title():
        body = {"model": MODEL, "messages": said("Hello"), "stream": False}
        answer = ask("/api/v1/tasks/title/completions", body)
        return same(answer["choices"][0]["message"]["content"], STORY)

    @step
    def embeddings():
        found = ask("/api/embeddings", {"model": MODEL, "input": ["a", "b"]})
        return same(len(found["data"]), 2)

    @step
    def real_chat():
        ask("/api/models")
        options = {"temperature": 0, "max_tokens": 40}
        answer = pieces(chat_with(said(QUESTION), stream=True, params=options))
        return holds(answer, "Paris")
