"""vLLM's own loaders over our folders, where vLLM is installed; its kernels are not needed.

pip install --no-deps vllm   (in an environment of its own; on a CPU its modules import)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llamaseek.checkpoints.hf import save_model
from tests.models.shapes import tiny_model
from tests.train.tiny import tiny_tokenizer

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_TARGET_DEVICE": "cpu"}
pytest.importorskip("vllm", reason="needs the package vllm (pip install --no-deps vllm)")
SIZES = {"llama3": {}, "deepseek_v3": {"num_nextn_predict_layers": 0}}
"""vLLM reads multi-token modules only for speculation."""


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_vllm_places_every_number(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config, tokenizer and tensors: vLLM's fused parameters hold the numbers of the file."""
    from vllm.config import (
        DeviceConfig,
        LoadConfig,
        ModelConfig,
        VllmConfig,
        set_current_vllm_config,
    )
    from vllm.model_executor.model_loader import base_loader, get_model_loader
    from vllm.tokenizers import get_tokenizer

    ours = tiny_tokenizer()
    save_model(tiny_model(family, vocab_size=ours.vocab_size, **SIZES[family]), tmp_path)
    ours.save(tmp_path)
    config = ModelConfig(model=str(tmp_path), tokenizer=str(tmp_path), dtype="float32", seed=0)
    whole = VllmConfig(
        model_config=config,
        load_config=LoadConfig(load_format="safetensors"),
        device_config=DeviceConfig(device="cpu"),
    )
    # What follows the loading repacks for compiled kernels and frees the memory of a GPU.
    monkeypatch.setattr(base_loader, "process_weights_after_loading", lambda *given: None)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    with set_current_vllm_config(whole), one_process():
        loader = get_model_loader(whole.load_config)
        theirs = loader.load_model(vllm_config=whole, model_config=config)
    tokenizer, text = get_tokenizer(str(tmp_path)), "The red fox chased the bird."
    assert tokenizer.encode(text, add_special_tokens=False) == ours.encode(text)
    stored = load_file(tmp_path / "model.safetensors").values()
    assert torch.equal(numbers(theirs.parameters()), numbers(stored))


@contextmanager
def one_process() -> Iterator[None]:
    """vLLM's parallel groups of one rank."""
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    init_distributed_environment(1, 0, place, 0, "gloo")
    initialize_model_parallel(1, 1)
    try:
        yield
    finally:
        cleanup_dist_env_and_memory()


def numbers(parameters: Iterable[Tensor]) -> Tensor:
    """All numbers in order of size; zeros are left out, as vLLM pads the vocabulary."""
    flat = torch.cat([one.detach().float().flatten() for one in parameters])
    return flat[flat != 0].sort().values
