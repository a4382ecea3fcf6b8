"""GGUF files that we write: read back bit by bit, in every type, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from llamaseek.checkpoints.convert import Conversion
from llamaseek.checkpoints.gguf.blocks import encode
from llamaseek.checkpoints.gguf.kinds import ASKED, Kind, kind_of
from llamaseek.checkpoints.gguf.modelfile import modelfile
from llamaseek.checkpoints.gguf.vocabulary import pre_name
from llamaseek.checkpoints.hf import load_model, save_model
from llamaseek.checkpoints.to_gguf import GgufConversion
from llamaseek.errors import UserError
from llamaseek.gguf_header import read_gguf
from llamaseek.herd import RopeScaling
from llamaseek.herd.folder import read_config
from llamaseek.models import CausalLM
from llamaseek.text import published
from llamaseek.text.gguf.pre_tokenizers import PRE_TOKENIZERS
from llamaseek.text.templates.stored import ChatTemplates
from llamaseek.text.tokenizer import Tokenizer
from tests.cli.run import Cli
from tests.models.shapes import tiny_model
from tests.train.tiny import tiny_tokenizer

LLAMA3_SCALING = RopeScaling("llama3", 8.0, 64, 1.0, 4.0)
YARN = RopeScaling("yarn", 4.0, 64, mscale=1.0, mscale_all_dim=1.0)
SIZES: dict[str, dict[str, Any]] = {
    "llama3": {"rope_scaling": LLAMA3_SCALING},
    "deepseek_v3": {
        "q_lora_rank": 24,
        "rope_scaling": YARN,
        "num_nextn_predict_layers": 1,
        "n_group": 4,
        "topk_group": 2,
    },
}
TIED: dict[str, Any] = {"tie_word_embeddings": True, "head_dim": 16}


def saved(folder: Path, family: str, dtype: torch.dtype, **changes: Any) -> CausalLM:
    """A tiny model with a tokenizer, in a folder."""
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": tokenizer.vocab_size + 3, **changes}
    sizes |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    model = tiny_model(family, **sizes)
    save_model(model, folder, dtype)
    tokenizer.save(folder)
    return model


def same_tensors(a: Path, b: Path) -> None:
    ours, theirs = load_model(a, torch.float32), load_model(b, torch.float32)
    for (name, x), (other, y) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(x, y), name


@pytest.mark.parametrize("asked", ["f32", "bf16"])
@pytest.mark.parametrize("family", ["llama3", "deepseek_v3", "tied"])
def test_folder_to_gguf_to_folder_is_bit_equal(family: str, asked: str, tmp_path: Path) -> None:
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[asked]
    sizes = TIED if family == "tied" else SIZES[family]
    saved(tmp_path / "a", "llama3" if family == "tied" else family, dtype, **sizes)
    GgufConversion(tmp_path / "a", tmp_path / "m.gguf").run()
    Conversion(tmp_path / "m.gguf", tmp_path / "b").run()
    before, after = (tmp_path / name / "model.safetensors" for name in "ab")
    from safetensors.torch import load_file

    first, second = load_file(before), load_file(after)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.equal(first[name], second[name]), name
    old, new = read_config(tmp_path / "a"), read_config(tmp_path / "b")
    assert replace(new, eos_token_id=old.eos_token_id, initializer_range=0.2) == replace(
        old, pad_token_id=new.pad_token_id
    )
    one, other = Tokenizer.load(tmp_path / "a"), Tokenizer.load(tmp_path / "b")
    text = "Hello, it's 2025!\n<|eot_id|> é 😀"
    assert one.encode(text) == other.encode(text)
    assert one.specials == {i: t for i, t in other.specials.items() if i in one.specials}
    assert one.chat_templates.named == other.chat_templates.named
    assert one.prefix_ids == other.prefix_ids and set(one.stop_ids) == set(other.stop_ids)


@pytest.mark.parametrize("asked", list(ASKED))
def test_every_type_is_what_the_package_reads(asked: str, tmp_path: Path) -> None:
    """Each tensor's error is at most what its type allows; norms are exact."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    saved(tmp_path / "a", "llama3", torch.float32, **sizes)
    GgufConversion(tmp_path / "a", tmp_path / "m.gguf", asked).run()
    exact = load_model(tmp_path / "a").state_dict()
    header = read_gguf(tmp_path / "m.gguf")
    found = load_model(tmp_path / "m.gguf").state_dict()
    most = {"f32": 0.0, "f16": 1e-3, "bf16": 4e-3, "q8_0": 0.01, "q4_k_m": 0.1}.get(asked, 0.12)
    for name, weight in exact.items():
        error = float((found[name] - weight).norm() / weight.norm())
        assert error <= (0.0 if "norm" in name else most), (name, error)
    theirs = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert theirs.keys() == header.tensors.keys()
    last = theirs["blk.7.ffn_down.weight"]
    np.testing.assert_array_equal(
        dequantize(last.data, last.tensor_type), found["model.layers.7.mlp.down_proj.weight"]
    )


def test_q4_k_m_chooses_as_llama_cpp_does() -> None:
    def kind(name: str, width: int = 512, tied: bool = False) -> str:
        return kind_of(name, (64, width), "q4_k_m", 32, tied).name

    assert kind("blk.0.attn_q.weight") == kind("blk.31.ffn_up.weight") == "Q4_K"
    assert kind("blk.0.attn_v.weight") == kind("blk.31.ffn_down.weight") == "Q6_K"
    assert kind("blk.4.ffn_down.weight") == "Q4_K" and kind("blk.6.ffn_down.weight") == "Q6_K"
    assert kind("output.weight") == "Q6_K" and kind("output.weight", 576) == "Q8_0"
    assert kind("token_embd.weight") == "Q4_K" and kind("token_embd.weight", 512, True) == "Q6_K"
    assert kind("blk.0.attn_q.weight", 576) == "Q5_0" and kind("blk.0.attn_v.weight", 576) == "Q8_0"
    assert kind("blk.0.attn_q.weight", 40) == "F16"
    assert kind("blk.3.ffn_gate_inp.weight") == "F32"


@pytest.mark.parametrize(("kind", "most"), [(Kind.Q4_K, 0.0722), (Kind.Q6_K, 0.0178)])
def test_blocks_of_256_are_as_near_as_llama_cpps(kind: Kind, most: float) -> None:
    """llama.cpp's own quantizer has relative errors of 0.07146 and 0.01771 on these numbers."""
    torch.manual_seed(0)
    rows = torch.randn(64, 2304) * 0.05
    rows[3], rows[5, :256], rows[6] = 0.0, 1.5, rows[6].abs()
    data = np.frombuffer(encode(rows, kind), np.uint8).reshape(64, -1)
    found = torch.from_numpy(dequantize(data, kind))
    assert float((found - rows)[7:].norm() / rows[7:].norm()) < most
    assert torch.equal(found[3], rows[3]) and found.isfinite().all()
    torch.testing.assert_close(found[5, :256], rows[5, :256], rtol=0.01, atol=0)


@pytest.mark.parametrize("name", ["default", "llama-bpe", "dbrx", "smollm", "gpt-2", "qwen2"])
def test_a_pre_tokenizer_is_known_by_what_it_does(name: str) -> None:
    pre = PRE_TOKENIZERS[name]
    content = {
        "pre_tokenizer": pre.to_json(),
        "model": {"type": "BPE", "ignore_merges": pre.ignore_merges},
    }
    assert pre_name(content) == name
    content["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(UserError, match="cuts text into words as none"):
        pre_name(content)


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_published_tokenizers_are_written(family: str, tmp_path: Path) -> None:
    published.get(family, tmp_path / "a")
    original = Tokenizer.load(tmp_path / "a")
    model = tiny_model(family, vocab_size=original.vocab_size, hidden_size=32)
    save_model(model, tmp_path / "a", torch.bfloat16)
    GgufConversion(tmp_path / "a", tmp_path / "m.gguf").run()
    found = Tokenizer.load(tmp_path / "m.gguf")
    text = "Don't 12345 naïve 日本語\r\n\n  <think>x</think> <|eot_id|>"
    assert found.encode(text) == original.encode(text)
    assert found.specials == original.specials and found.prefix_ids == original.prefix_ids
    assert found.named_tokens.items() >= original.named_tokens.items()


def test_named_templates_come_through(tmp_path: Path) -> None:
    saved(tmp_path / "a", "llama3", torch.float32)
    named = ChatTemplates({"default": "{{ bos_token }}d", "tool_use": "{{ bos_token }}t"})
    named.save(tmp_path / "a")
    GgufConversion(tmp_path / "a", tmp_path / "m.gguf").run()
    assert Tokenizer.load(tmp_path / "m.gguf").chat_templates.named == named.named
    Conversion(tmp_path / "m.gguf", tmp_path / "b").run()
    assert Tokenizer.load(tmp_path / "b").chat_templates.named == named.named


def refused(source: Path, target: Path, asked: str | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        GgufConversion(source, target, asked).run(**options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "a", "llama3", torch.float32)
    target = tmp_path / "m.gguf"
    assert "'q5_k' is not allowed" in refused(tmp_path / "a", target, "q5_k")
    GgufConversion(tmp_path / "a", target).run()
    assert "exists; --overwrite replaces it" in refused(tmp_path / "a", target)
    GgufConversion(tmp_path / "a", target, "q8_0").run(overwrite=True)
    assert "give --dtype: f32" in refused(target, tmp_path / "n.gguf")
    assert "which it is made from" in refused(target, target, "q4_0", overwrite=True)
    model.model.norm.weight.data.fill_(1.0)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6  # type: ignore[union-attr]
    save_model(model, tmp_path / "a")
    message = refused(tmp_path / "a", tmp_path / "o.gguf", "f16")
    assert "blk.0.ffn_up.weight: has numbers beyond 65,504, which f16 cannot hold" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m.gguf"]


def test_a_reward_model_has_no_place(tmp_path: Path) -> None:
    saved(tmp_path / "a", "llama3", torch.float32, is_reward_model=True)
    assert "a reward model cannot be written" in refused(tmp_path / "a", tmp_path / "m.gguf")


def test_two_mscales_have_no_place(tmp_path: Path) -> None:
    yarn = replace(YARN, mscale=0.5)
    saved(tmp_path / "a", "deepseek_v3", torch.float32, rope_scaling=yarn)
    assert "a .gguf file has one key" in refused(tmp_path / "a", tmp_path / "m.gguf")


SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_template(template: str | None) -> Tokenizer:
    tokenizer = tiny_tokenizer()
    return Tokenizer(tokenizer.to_json(), chat_template=template)


def test_a_modelfile_loops_over_messages() -> None:
    text = modelfile("m.gguf", with_template(SMOLLM2_TEMPLATE))
    assert text.startswith("FROM ./m.gguf\n")
    assert 'TEMPLATE """{{ if not .System }}<|im_start|>system\nYou are helpful<|im_end|>\n' in text
    turn = '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    assert turn in text and text.count("{{ end }}") == 3
    assert 'PARAMETER stop "<|eot_id|>"' in text


def test_a_modelfile_of_llama_3() -> None:
    text = modelfile("m.gguf", tiny_tokenizer())
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert "<|begin_of_text|>" not in text
    assert f'eq .Role "user" }}}}{head.format("user")}{{{{ .Content }}}}<|eot_id|>' in text
    assert f'{{{{ end }}}}{head.format("assistant")}"""' in text


def test_a_template_that_counts_is_left_out() -> None:
    counting = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}"
    text = modelfile("m.gguf", with_template(counting))
    assert "TEMPLATE" not in text and "has no form in Ollama's words" in text


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    saved(tmp_path / "a", "llama3", torch.float32)
    target = tmp_path / "out" / "m.gguf"
    done = cli("convert", str(tmp_path / "a"), str(target), "--dtype", "q8_0", "--modelfile")
    assert done.code == 0 and f"wrote {target}" in done.out
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./m.gguf")
    assert cli("generate", str(target), "red", "--max-tokens", "3").code == 0
    done = cli("convert", str(tmp_path / "a"), str(tmp_path / "b"), "--modelfile")
    assert done.code == 2 and "--modelfile: goes with a .gguf file" in done.err
    done = cli("convert", str(tmp_path / "a"), str(tmp_path / "b"), "--dtype", "q8_0")
    assert done.code == 2 and "for a folder" in done.err
    assert json.loads(cli("inspect", str(target), "--json").out)["problems"] == []
