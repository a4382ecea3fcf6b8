"""Models by their ids on the Hub, against a server that speaks its protocol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from llamaseek.checkpoints.hf import save_model
from llamaseek.checkpoints.hub import HubName, choose, parse_name
from llamaseek.checkpoints.sources import find_source, name_of
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.errors import UserError
from llamaseek.text.tokenizer import Tokenizer
from tests.cli.run import Result
from tests.hub_server import TOKEN, Hub, running_hub
from tests.models.shapes import tiny_model

ID, GGUF = "tester/tiny", "tester/tiny-GGUF"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes with a tokenizer, and it as a GGUF file beside its folder."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    tokenizer = Tokenizer.load(model)
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 256, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 1024, "max_position_embeddings": 512}
    save_model(tiny_model("llama3", **sizes, eos_token_id=tokenizer.eos_id), folder)
    tokenizer.save(folder)
    GgufConversion(folder, folder.with_suffix(".gguf"), "f32").run()
    return folder


@pytest.fixture
def hub(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that has both, and beside the weights what must not be fetched."""
    others = {"pytorch_model.bin": b"a pickle", "modeling_tiny.py": b"raise SystemExit('code')"}
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    packed = made.with_suffix(".gguf").read_bytes()
    with running_hub() as hub:
        hub.add(ID, files | others)
        hub.add(GGUF, {"tiny-F32.gguf": packed, "tiny-Q2_K.gguf": b"GGUF", "README.md": b"#"})
        yield hub


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """`run("inspect", ID)`: the command in a process of its own, with a cache of the test's."""

    def command(*words: str, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "llamaseek", *map(str, words)],
            env=environment(hub, tmp_path) | env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return command


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    """This process's with the Hub and the cache of a test."""
    path = os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "PYTHONPATH": path}
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return kept | own | {"HF_HUB_DISABLE_XET": "1"}


def one_line(done: Result) -> str:
    assert done.code == 2 and done.err.count("\n") == 1, done
    return done.err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", HubName("a/b")),
        ("a/b@v1.0", HubName("a/b", "v1.0")),
        ("a/b@refs/pr/3", HubName("a/b", "refs/pr/3")),
        ("a/b:Q4_K_M", HubName("a/b", None, "Q4_K_M")),
        ("hf.co/a/b:q8_0", HubName("a/b", None, "q8_0")),
        ("https:/huggingface.co/a/b@main:x/y.gguf", HubName("a/b", "main", "x/y.gguf")),
        ("a/b.gguf", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("../b", None),
        ("a", None),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    assert parse_name(text) == name


FILES = [
    "x-Q4_K_M.gguf",
    "x-Q8_0-00001-of-00002.gguf",
    "x-Q8_0-00002-of-00002.gguf",
    "x.IQ4_XS.gguf",
    "UD/x-UD-Q4_K_XL.gguf",
    "mmproj-x-F16.gguf",
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, FILES[:1]),
        ("latest", FILES[:1]),
        ("q4_k_m", FILES[:1]),
        ("Q8_0", FILES[1:3]),
        ("iq4_xs", FILES[3:4]),
        ("Q4_K_XL", FILES[4:5]),
        ("x.IQ4_XS.gguf", FILES[3:4]),
        ("mmproj-x-F16.gguf", FILES[5:]),
    ],
)
def test_a_gguf_file_is_chosen(wanted: str | None, found: list[str]) -> None:
    assert choose(HubName("a/b", None, wanted), FILES) == found


def test_no_such_quantization_names_those_that_are_there() -> None:
    with pytest.raises(UserError, match=r"a/b:Q2_K: 'Q2_K' is no file or quantization; it has x-Q"):
        choose(HubName("a/b", None, "Q2_K"), FILES)


def test_weights_are_safetensors_and_nothing_else_is_fetched() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    small = ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"]
    other = ["model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "x.py", "a.md"]
    further = ["onnx/model.safetensors", "original/params.json"]
    files = [*shards, *small, *other, *further]
    assert sorted(choose(HubName("a/b"), files)) == sorted([*shards, *small])
    assert choose(HubName("a/b"), files, "config") == ["config.json", small[3]]
    assert sorted(choose(HubName("a/b"), files, "tokenizer")) == sorted(small[:3])
    with pytest.raises(UserError, match="it has pytorch_model.bin, and pickles are not read"):
        choose(HubName("a/b"), ["config.json", "pytorch_model.bin"])


def test_generate_by_id_and_by_revision(hub: Hub, run: Run, made: Path, tmp_path: Path) -> None:
    sha = hub.repos[ID].refs["main"]
    hub.add(ID, {"config.json": b"{}", "model.safetensors": b"newer"})
    expected = run("generate", str(made), "The red", "--max-tokens", "4")
    done = run("generate", f"{ID}@{sha}", "The red", "--max-tokens", "4")
    assert done.code == 0 and done.out == expected.out, done.err
    fetched = {Path(one.path).name for one in hub.asked if "/resolve/" in one.path}
    assert fetched == {path.name for path in made.iterdir()}
    again = len(hub.asked)
    offline = run("generate", f"{ID}@{sha}", "The red", "--max-tokens", "4", HF_HUB_OFFLINE="1")
    assert offline.out == expected.out and len(hub.asked) == again
    line = one_line(run("chat", f"{ID}@v9"))
    assert f"{ID}@v9: has no branch, tag or commit 'v9'" in line


def test_a_gguf_file_by_its_name(hub: Hub, run: Run, made: Path) -> None:
    expected = run("generate", str(made.with_suffix(".gguf")), "The red", "--max-tokens", "4")
    done = run("generate", f"hf.co/{GGUF}:f32", "The red", "--max-tokens", "4")
    assert done.code == 0 and done.out == expected.out, done.err
    assert hub.sent("tiny-Q2_K.gguf") == hub.sent("README.md") == 0


@pytest.mark.parametrize("words", [("plan", "--gpu", "h100-80gb"), ("inspect",)])
def test_headers_alone(words: tuple[str, ...], hub: Hub, run: Run, made: Path) -> None:
    """What is printed is what the whole model gives, of whose weights only the start is fetched."""
    for name, here, most in (
        (ID, made, 100_001),
        (f"{GGUF}:F32", made.with_suffix(".gguf"), 1 << 20),
    ):
        done, whole = run(*words, name, "--json"), run(*words, str(here), "--json")
        assert done.code == 0, done.err
        found, expected = json.loads(done.out), json.loads(whole.out)
        assert found.pop("model" if words[0] == "plan" else "folder") == name
        expected.pop("model" if words[0] == "plan" else "folder")
        assert {**found, "title": ""} == {**expected, "title": ""}
        sent = hub.sent(".safetensors") + hub.sent(".gguf")
        weights = here if here.is_file() else here / "model.safetensors"
        assert 0 < sent <= most < weights.stat().st_size / 4, sent
        hub.asked.clear()


def test_a_longer_header_is_read_in_parts(
    hub: Hub, run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys, llamaseek.checkpoints.hub_headers as headers; headers.FIRST = 1000;"
        "from llamaseek.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "inspect", f"{GGUF}:F32", "--json"]
    done = subprocess.run(
        command, env=environment(hub, tmp_path), capture_output=True, text=True, check=True
    )
    whole = run("inspect", str(made.with_suffix(".gguf")), "--json")
    assert json.loads(done.stdout)["tensors"] == json.loads(whole.out)["tensors"]
    ranges = [one.range for one in hub.asked if one.path.endswith(".gguf") and one.range]
    assert ranges[:3] == ["bytes=0-999", "bytes=1000-3999", "bytes=4000-15999"]


def test_a_tokenizer_alone(hub: Hub, run: Run, made: Path) -> None:
    expected = run("tokenize", "The red fox", "-t", str(made), "--ids")
    for name in (ID, f"{GGUF}:F32"):
        done = run("tokenize", "The red fox", "-t", name, "--ids")
        assert done.code == 0 and done.out == expected.out, done.err
    assert hub.sent(".safetensors") == 0


def test_resumed_after_a_kill(hub: Hub, run: Run, made: Path, tmp_path: Path) -> None:
    size = (made / "model.safetensors").stat().st_size
    hub.rate = size / 30  # bytes a second: half a minute, of which a few seconds are waited for
    program = (  # which writes pieces smaller than 10 MB
        "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1 << 16;"
        "from llamaseek.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "download", ID]
    first = subprocess.Popen(command, env=environment(hub, tmp_path), cwd=tmp_path)
    wait_for(lambda: partial_size(tmp_path) > size / 8)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = partial_size(tmp_path)
    assert 0 < kept < size
    hub.rate = float("inf")
    done = run("download", ID)
    assert done.code == 0, done.err
    assert f"talk to it: llamaseek chat {ID}" in done.out
    asked = [one for one in hub.asked if one.path.endswith("model.safetensors") and one.range]
    assert [(one.range, one.sent) for one in asked] == [(f"bytes={kept}-", size - kept)]
    place = Path(done.out.splitlines()[0].removeprefix("wrote "))
    assert (place / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def partial_size(folder: Path) -> int:
    """Bytes of the largest file that is still being fetched."""
    return max((p.stat().st_size for p in folder.rglob("*.incomplete")), default=0)


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_gated_missing_offline_unreachable(hub: Hub, run: Run) -> None:
    hub.add("tester/gated", {"config.json": b"{}", "model.safetensors": b"x"}, gated=True)
    line = one_line(run("chat", "tester/gated"))
    assert "is gated; accept its license on" in line and "hf auth login" in line
    line = one_line(run("chat", "tester/nothing"))
    assert "no such folder here, and no such model on" in line
    line = one_line(run("chat", ID, HF_TOKEN="hf_wrong"))
    assert "answers 401; check the token with `hf auth whoami`, or" in line
    line = one_line(run("chat", ID, HF_HUB_OFFLINE="1"))
    assert f"{ID}: is not on this machine, and HF_HUB_OFFLINE is set" in line
    line = one_line(run("chat", ID, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "http://127.0.0.1:9 cannot be reached" in line
    hub.add("tester/gated", {"config.json": b"{}"}, gated=True)
    assert "holds no safetensors" in one_line(run("chat", "tester/gated", HF_TOKEN=TOKEN))


def test_a_disk_that_is_too_small(hub: Hub, run: Run, tmp_path: Path) -> None:
    program = (
        "import shutil; from collections import namedtuple;"
        "shutil.disk_usage = lambda _: namedtuple('Usage', 'total used free')(9, 8, 1);"
        "from llamaseek.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "download", ID],
        env=environment(hub, tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "needs 0.0" in done.stderr and "HF_HOME names" in done.stderr
    assert hub.sent(".safetensors") == 0


def test_what_exists_is_meant_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tester").mkdir()
    Path(ID).symlink_to(made)
    assert find_source(ID) == Path(ID)
    with pytest.raises(UserError, match="tester/tinny: no such folder in tester; hf.co/tester/tin"):
        find_source("tester/tinny")


def test_names_that_another_machine_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path("/somewhere/hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    kept = cache / "models--a--b-c" / "snapshots" / "0123"
    assert name_of(str(kept)) == "a/b-c@0123"
    assert name_of(str(kept / "q" / "x.gguf")) == "a/b-c@0123:q/x.gguf"
    for path in ("/elsewhere/model", str(cache / "models--a--b-c"), "runs/x/model"):
        assert name_of(path) == path


def test_a_run_from_the_hub(hub: Hub, run: Run, made: Path, tmp_path: Path) -> None:
    """LoRA on a model and a tokenizer by their ids: the recipe and the adapter name the commit."""
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows.write_text((json.dumps(row) + "\n") * 8)
    out = tmp_path / "run"
    words = [f"model.init_from={ID}", f"tokenizer.path={ID}", f"data.sources=[{rows}]"]
    words += [f"out={out}", "train.steps=1", "train.batch=2", "data.length=64", "train.warmup=0"]
    words += ["lora={rank: 2}", "train.device=cpu", "data.holdout=0.25"]
    done = run("sft", "quickstart-sft", *words)
    assert done.code == 0, done.err
    sha = hub.repos[ID].refs["main"]
    assert f"init_from: {ID}@{sha}" in (out / "recipe.yaml").read_text()
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (ID, sha)
    hub.asked.clear()
    answer = run("generate", str(out / "model"), "The red", "--max-tokens", "4")
    program = (
        "import sys, llamaseek;"
        "print('The red' + llamaseek.load(sys.argv[1]).generate('The red', max_tokens=4))"
    )
    command = [sys.executable, "-c", program, str(out / "adapter")]
    found = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True)
    assert found.stdout == answer.out, found.stderr
    bad = run(
        "sft", "quickstart-sft", *words[1:], "model.init_from=tester/nothing", f"out={tmp_path}/x"
    )
    assert "model.init_from: tester/nothing: no such folder here" in one_line(bad)
