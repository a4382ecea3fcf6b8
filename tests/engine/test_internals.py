"""A look inside: attention as transformers', experts as the router's, bytes as the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamaseek.checkpoints.hf import save_model
from llamaseek.engine.engine import Engine
from llamaseek.engine.forward.paged import bytes_per_token
from llamaseek.engine.internals import LONGEST, read_internals
from llamaseek.engine.request import Request, SamplingParams
from llamaseek.errors import UserError
from llamaseek.herd.published import ENTRIES
from llamaseek.models import CausalLM, build_model

NAMES = ("tiny-llama3", "tiny-deepseek-v3")
ROW = [5, 9, 200, 31, 77, 8, 14, 60]


def network(name: str) -> CausalLM:
    torch.manual_seed(0)
    model = build_model(ENTRIES[name].config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 3  # attention that is far from even
    return model


@pytest.mark.parametrize("name", NAMES)
def test_attention_and_layers_are_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = network(name)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ROW]), output_attentions=True, output_hidden_states=True)
    found = read_internals(model, ROW, top=3)
    for ours, reference in zip(found.attention, wanted.attentions, strict=True):
        assert torch.allclose(ours.sum(-1), torch.ones(ours.shape[:2]), atol=1e-5)
        assert torch.allclose(ours, reference[0], atol=1e-5)
    last = wanted.logits[0].softmax(-1).topk(3)
    assert torch.equal(found.layers[-1], last.indices)
    assert torch.allclose(found.probabilities[-1], last.values, atol=1e-5)


def test_experts_and_gates_are_the_routers() -> None:
    model = network("tiny-deepseek-v3")
    found = read_internals(model, ROW)
    assert sorted(found.experts) == [
        layer for layer in model.moe_layers() if layer < model.config.num_hidden_layers
    ]
    inputs: dict[int, torch.Tensor] = {}
    hooks = [
        moe.register_forward_pre_hook(lambda _, given, at=layer: inputs.update({at: given[0]}))
        for layer, moe in model.moe_layers().items()
    ]
    with torch.no_grad():
        model(torch.tensor([ROW]), torch.arange(len(ROW))[None])
    for hook in hooks:
        hook.remove()
    for layer, (chosen, gates) in found.experts.items():
        router = model.moe_layers()[layer].gate
        wanted, weights = router.choose(router.scores(inputs[layer].flatten(0, 1)))
        order = weights.argsort(-1, descending=True)
        assert torch.equal(chosen, wanted.gather(1, order))
        assert torch.allclose(gates, weights.gather(1, order))
        assert int(found.expert_load[layer].sum()) == chosen.numel()


@pytest.mark.parametrize("name", NAMES)
def test_cache_bytes_are_the_engines_and_nothing_is_changed(name: str) -> None:
    model = network(name)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    before = Engine(model).generate([Request(prompt=ROW, params=params)])[0].answers[0].tokens
    found = read_internals(model, ROW)
    shapes = model.cache_shapes()[: model.config.num_hidden_layers]
    assert found.cache_bytes == bytes_per_token(shapes, torch.bfloat16, "auto")
    assert found.cache_bytes < found.full_cache_bytes
    after = Engine(model).generate([Request(prompt=ROW, params=params)])[0].answers[0].tokens
    assert before == after
    assert not any(module._forward_pre_hooks for module in model.modules())
    again = read_internals(model, ROW)
    assert all(torch.equal(a, b) for a, b in zip(found.attention, again.attention, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_token_alone_is_the_last_row(name: str) -> None:
    model = network(name)
    found, last = read_internals(model, ROW), read_internals(model, ROW, last=True)
    for every, one in zip(found.attention, last.attention, strict=True):
        assert torch.equal(every[:, -1:], one)
    assert torch.equal(found.layers[:, -1:], last.layers)
    assert found.experts.keys() == last.experts.keys()


@pytest.mark.parametrize("count", [0, LONGEST + 1])
def test_a_row_of_another_length_is_refused(count: int) -> None:
    with pytest.raises(UserError, match="text: .* tokens"):
        read_internals(network("tiny-llama3"), [1] * count)
