"""4-bit NormalFloat beside torchao's, and its product beside the dense one's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llamaseek.models.lora import add_lora, merge
from llamaseek.models.quant.nf4 import NF4Linear, dequantize, levels, quantize, quantize_layers
from tests.models.shapes import rows, tiny_model


def test_levels_and_rounding_are_torchaos() -> None:
    nf4tensor = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    torch.manual_seed(0)
    weight = torch.randn(96, 128)
    theirs = nf4tensor.NF4Tensor.from_tensor(weight, 64, 64)
    assert torch.allclose(theirs.nf4, torch.tensor(levels()), atol=1e-4)  # four digits there
    codes, scales = quantize(weight)
    assert float((codes == theirs.quantized_data).float().mean()) > 0.999
    ours = dequantize(codes, scales, weight.shape, torch.float32)
    # torchao quantizes the scales as well, which moves them by less than a hundredth; where codes
    # differ a weight lay between two levels.
    near = (ours - theirs.get_original_weight()).abs() <= 0.01 * float(scales.max())
    assert float(near.float().mean()) > 0.999


def test_levels_are_the_papers() -> None:
    found = levels()
    assert len(found) == 16 and found[0] == -1 and found[7] == 0 and found[15] == 1
    assert found[1] == pytest.approx(-0.6961928, abs=1e-6)  # QLoRA appendix E
    assert found[8] == pytest.approx(0.0795803, abs=1e-6)
    assert found[14] == pytest.approx(0.7229568, abs=1e-6)


def test_a_weight_on_the_levels_comes_back_as_it_was() -> None:
    torch.manual_seed(0)
    exact = torch.tensor(levels())[torch.randint(0, 16, (5, 64))]
    exact[:, 0] = 1.0
    weight = exact * torch.rand(5, 1)
    codes, scales = quantize(weight)
    assert torch.equal(dequantize(codes, scales, weight.shape, torch.float32), weight)
    odd = torch.randn(3, 7)  # no multiple of 64
    assert dequantize(*quantize(odd), odd.shape, torch.float32).shape == odd.shape


def test_the_product_and_its_gradient_are_the_dense_ones() -> None:
    torch.manual_seed(0)
    layer = NF4Linear(nn.Linear(70, 30, bias=False))
    x = torch.randn(4, 5, 70, requires_grad=True)
    y = layer(x)
    wanted = x.detach().requires_grad_()
    dense = wanted @ layer.dense(torch.float32).T
    assert torch.allclose(y, dense)
    for out in (y, dense):
        out.square().sum().backward()
    assert x.grad is not None and wanted.grad is not None
    assert torch.allclose(x.grad, wanted.grad)
    assert not list(layer.parameters())


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_a_quantized_model_runs_adapts_and_merges(family: str) -> None:
    model, twin = tiny_model(family).eval(), tiny_model(family).eval()
    tokens, positions = rows()
    quantize_layers(model)
    kept = {n: m for n, m in model.named_modules() if isinstance(m, NF4Linear)}
    assert kept and not any(".layers." not in f".{name}" for name in kept)
    for name, layer in kept.items():
        twin.get_submodule(name).weight.data = layer.dense(torch.float32)
    near = model(tokens, positions)
    assert torch.allclose(near, twin(tokens, positions), atol=1e-6)
    add_lora(model, 2, 4.0, [])
    assert torch.allclose(model(tokens, positions), near)
    merge(model)
    assert torch.allclose(model(tokens, positions), near, atol=1e-5)
