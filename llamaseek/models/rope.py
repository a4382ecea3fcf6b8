"""Rotary position embeddings, Llama 3.1's frequency scaling, and YaRN.

B batch, T time, H heads, R rotary width (even).
Sources: RoFormer §3; Llama 3.1 `models/llama3/model.py` (apply_scaling); YaRN §3 as used in the
DeepSeek-V3 report §4.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llamaseek.herd import ModelConfig, RopeScaling
from llamaseek.kernels.fused import Rotate, in_one_pass, rotate_both
from llamaseek.models.layers import widen


def inverse_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Radians per position for each rotary pair, float32 of shape (width / 2)."""
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == "llama3":
        return _scale_llama3(frequencies, scaling)
    return _scale_yarn(frequencies, width, theta, scaling)


def _scale_llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow the long waves by `factor`, keep the short ones, blend in between."""
    waves = 2 * math.pi / frequencies
    original, low, high = (
        scaling.original_max_position_embeddings,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    smooth = ((original / waves - low) / (high - low)).clamp(0, 1)
    return frequencies * ((1 - smooth) / scaling.factor + smooth)


def _scale_yarn(frequencies: Tensor, width: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Interpolate pairs that turn less than beta_slow times over the original length."""
    first = _pair_of_rotations(scaling.beta_fast, width, theta, scaling)
    last = _pair_of_rotations(scaling.beta_slow, width, theta, scaling)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float32)
    # The range may be empty or turned around; transformers computes with it as it is.
    ramp = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def _pair_of_rotations(turns: float, width: int, theta: float, scaling: RopeScaling) -> float:
    """The (fractional) pair index that makes `turns` rotations over the original length."""
    length = scaling.original_max_position_embeddings
    return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's magnitude correction, sqrt(1/t) = 0.1 m ln s + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rotary_magnitude(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied by: YaRN's temperature, unless the softmax has it."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        above = yarn_mscale(scaling.factor, scaling.mscale)
        return above / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


def softmax_scale(width: int, scaling: RopeScaling | None) -> float:
    """1 / sqrt(width), times YaRN's mscale squared if the config has mscale_all_dim."""
    scale = width**-0.5
    if scaling is not None and scaling.rope_type == "yarn" and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


class Rotary(torch.nn.Module):
    """Cosines and sines for given positions."""

    inv_freq: Tensor

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.width = width
        frequencies = inverse_frequencies(width, config.rope_theta, config.rope_scaling)
        self.magnitude = rotary_magnitude(config.rope_scaling)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (B, T) → cos, sin, each (B, T, 1, R / 2), in float32."""
        with torch.autocast(positions.device.type, enabled=False):
            angles = positions[..., None].float() * self.inv_freq
            cos, sin = angles.cos() * self.magnitude, angles.sin() * self.magnitude
        return cos[:, :, None], sin[:, :, None]


def rotate_pair(
    q: Tensor, k: Tensor, turns: tuple[Tensor, Tensor], interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Queries and keys turned: (B, T, H, R) and (B, T, K, R); for decoding in one kernel."""
    if in_one_pass(q) and not torch.is_grad_enabled():
        return rotate_both(q, k, *turns, interleaved)
    turned = rotate_interleaved if interleaved else rotate_halves
    return turned(q, *turns), turned(k, *turns)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + R/2), the order Llama's Hugging Face weights use. x (B, T, H, R).

    In float32, as Meta's and DeepSeek's code do it; the result is in x's dtype.
    """
    if in_one_pass(x):
        out: Tensor = Rotate.apply(x, cos, sin, False)
        return out
    first, second = widen(x).chunk(2, dim=-1)  # once, where each product would widen its own
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (2i, 2i + 1), the order DeepSeek's weights use. x (B, T, H, R)."""
    if in_one_pass(x):
        out: Tensor = Rotate.apply(x, cos, sin, True)
        return out
    even, odd = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)
