"""Grouped-query attention (Llama 3) and multi-head latent attention (DeepSeek-V3).

B batch, T time, D width, H query heads, K key-value heads, C latent rank, R rotary width,
P qk_nope_head_dim, V v_head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamaseek.herd import DeepseekV3Config, Llama3Config
from llamaseek.models.cache import Cache, LayerShape
from llamaseek.models.documents import (
    Documents,
    attend_by_document,
    attend_whole,
    packed_documents,
)
from llamaseek.models.latent import LatentHeads
from llamaseek.models.layers import RMSNorm, dense_weight
from llamaseek.models.rope import rotate_pair, softmax_scale

# transformers and DeepSeek's own code leave the latent norms at this eps whatever the config says.
LATENT_NORM_EPS = 1e-6
BLOCKED_LENGTH = 1024  # rows up to this long keep their attention weights, on CPUs
BLOCK = 128  # queries a block: four blocks of a row of 512 skip 3/8 of all products

Mask = Tensor | Documents | tuple[Documents, Documents]
"""Which keys a query sees. On GPUs the cumulative lengths of the documents; where a row is split
over ranks, for the keys that each of a rank's two chunks sees."""


def row_mask(positions: Tensor, causal: bool) -> Mask | None:
    """Which keys each query of whole rows sees; None where every row is one document."""
    if positions.device.type != "cpu":
        return packed_documents(positions)
    mask = document_mask(positions, causal)
    return mask if mask is None or mask.shape[-1] > BLOCKED_LENGTH else added(mask, torch.bfloat16)


def added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of bools as what is added to scores: 0 and -inf. On CPUs an addition that spreads over
    heads runs at the memory's speed; filling through a mask that does is many times as slow.
    """
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)


def document_mask(positions: Tensor, causal: bool, columns: Tensor | None = None) -> Tensor | None:
    """Which keys each query sees: those of its own document, and none later if `causal`.

    positions (B, T) restart at 0 where a document begins; queries are those of all T columns or of
    `columns` (Q). Returns bool (B, 1, Q, T), or None where every row is one document and the plain
    (causal or full) attention is right.
    """
    time = positions.shape[1]
    steps = torch.arange(time, device=positions.device)
    if torch.equal(positions, steps.expand_as(positions)):
        return None
    documents = (positions == 0).cumsum(1)
    queries = steps if columns is None else columns
    same = documents[:, queries, None] == documents[:, None, :]
    if causal:
        same = same & (queries[:, None] >= steps)
    return same[:, None]


def attend_in_row(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, causal: bool, scale: float
) -> Tensor:
    """Attention without a cache. q (B, T, H, W), k (B, T, K, W), v (B, T, K, V) → (B, T, H, V)."""
    if isinstance(mask, Documents):
        return attend_by_document(q, k, v, mask, causal, scale)
    assert not isinstance(mask, tuple)
    if q.device.type != "cpu" and mask is None:
        return attend_whole(q, k, v, causal, scale)
    if q.device.type == "cpu" and q.shape[1] <= BLOCKED_LENGTH:
        return attend_in_blocks(q, k, v, mask, causal, scale)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """The same by plain matrix products, a block of queries against the keys it may see.

    On CPUs the fused kernel's products reach a quarter of what a batched matrix product does.
    The weights are kept for the backward pass, so this is for short rows only. Query heads that
    share a key head are laid beside each other, and causal blocks skip the keys after them.
    """
    time, heads, keys, groups = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    share = heads // groups
    q = (q * scale).unflatten(2, (groups, share)).permute(0, 2, 3, 1, 4)  # (B, K, H/K, T, W)
    k, v = k.permute(0, 2, 3, 1), v.transpose(1, 2)  # (B, K, W, T), (B, K, T, V)
    if mask is None and causal:
        steps = torch.arange(time)
        mask = steps[:, None] >= steps
    if mask is not None:
        mask = added(mask, q.dtype) if mask.dtype == torch.bool else mask.to(q.dtype)
        mask = mask[:, None] if mask.dim() == 4 else mask
    outs = []
    for start in range(0, time, BLOCK):
        stop = min(start + BLOCK, time)
        end = stop if causal else keys
        scores = q[:, :, :, start:stop].flatten(2, 3) @ k[..., :end]
        scores = scores.unflatten(2, (share, stop - start))
        hidden = None if mask is None else mask[..., start:stop, :end]
        weights = _AttentionWeights.apply(scores, hidden).to(v.dtype).flatten(2, 3)
        outs.append((weights @ v[:, :, :end]).unflatten(2, (share, stop - start)))
    return torch.cat(outs, dim=3).permute(0, 3, 1, 2, 4).flatten(2, 3)


class _AttentionWeights(torch.autograd.Function):
    """Softmax over keys, computed in float32 and rounded to the scores' dtype, after -inf was added
    to hidden ones.

    It keeps the weights alone. The gradient of hidden scores needs no mask: their weights are 0.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        back = torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)
        return back, None


def whole_row(x: Tensor) -> Tensor:
    """Keys and values (B, T, …) of the whole row: x itself, unless a row is split over ranks."""
    return x


class GroupedQueryAttention(nn.Module):
    """Several query heads share a key-value head (Ainslie et al. 2023; Llama 3 paper §3.2)."""

    def __init__(self, config: Llama3Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.causal = config.is_causal
        self.whole_row, self.attend = whole_row, attend_in_row
        self.scale = config.head_dim**-0.5
        width, heads = config.hidden_size, config.num_attention_heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)

    @staticmethod
    def cache_shape(config: Llama3Config) -> LayerShape:
        """Keys and values of every key-value head."""
        widths = (config.head_dim, config.head_dim)
        return LayerShape(config.num_key_value_heads, widths, config.head_dim)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: Mask | None,
        cache: Cache | None,
    ) -> Tensor:
        """x (B, T, D) → (B, T, D)."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        q, k = rotate_pair(q, k, rotary)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if cache is None:
            k, v = self.whole_row(k), self.whole_row(v)
            out = self.attend(q, k, v, mask, self.causal, self.scale)
        else:
            out = cache.attend(self.layer, q, (k, v), positions, self.scale)
        projected: Tensor = self.o_proj(out.flatten(2))
        return projected


class LatentAttention(nn.Module):
    """Keys and values come from one small latent a token (DeepSeek-V2 §2.1, V3 §2.1.1).

    Training expands the latent into per-head keys and values. Decoding keeps only the latent and
    the shared rotary key, and moves the expansion into the query and the output ("absorbed"):
    q·(W_UK c) = (W_UKᵀ q)·c, and Σ a (W_UV c) = W_UV (Σ a c).
    """

    def __init__(self, config: DeepseekV3Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.causal = config.is_causal
        self.whole_row, self.attend = whole_row, attend_in_row
        self.heads = config.num_attention_heads
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value, self.rank = config.v_head_dim, config.kv_lora_rank
        self.scale = softmax_scale(config.qk_head_dim, config.rope_scaling)
        width, query_width = config.hidden_size, self.heads * config.qk_head_dim
        self.q_lora_rank = config.q_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, query_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, query_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, self.rank + self.rope, bias=False)
        self.kv_a_layernorm = RMSNorm(self.rank, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.rank, self.heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value, width, bias=False)

    @staticmethod
    def cache_shape(config: DeepseekV3Config) -> LayerShape:
        """The latent and the rotary key, shared by all heads; nothing else."""
        width = config.kv_lora_rank + config.qk_rope_head_dim
        return LayerShape(1, (width,), config.kv_lora_rank)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: Mask | None,
        cache: Cache | None,
    ) -> Tensor:
        """x (B, T, D) → (B, T, D)."""
        q_nope, q_rope = self._query(x).split((self.nope, self.rope), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), dim=-1)
        latent = self.kv_a_layernorm(latent)
        q_rope, k_rope = rotate_pair(q_rope, k_rope[:, :, None], rotary, interleaved=True)
        if cache is None:
            out = self._expanded(q_nope, q_rope, latent, k_rope, mask)
        else:
            out = self._cached(q_nope, q_rope, latent, k_rope, positions, cache)
        projected: Tensor = self.o_proj(out.flatten(2))
        return projected

    def _query(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, H, P + R)."""
        if self.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return q.unflatten(-1, (-1, self.nope + self.rope))

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Mask | None
    ) -> Tensor:
        latent, k_rope = self.whole_row(latent), self.whole_row(k_rope)
        expanded = self.kv_b_proj(latent).unflatten(-1, (-1, self.nope + self.value))
        k_nope, v = expanded.split((self.nope, self.value), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, -1, k_nope.shape[2], -1)), dim=-1)
        if q.device.type != "cpu":
            return self.attend(q, k, v, mask, self.causal, self.scale)
        # The fused kernels of CPUs want values as wide as keys; added zeros change no sum.
        wider = self.nope + self.rope - self.value
        if wider < 0:
            q, k = F.pad(q, (0, -wider)), F.pad(k, (0, -wider))
        v = F.pad(v, (0, max(wider, 0)))
        out: Tensor = self.attend(q, k, v, mask, self.causal, self.scale)
        return out[..., : self.value]

    def _cached(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        positions: Tensor,
        cache: Cache,
    ) -> Tensor:
        kv_b = dense_weight(self.kv_b_proj, q_nope.dtype)
        kv_b = kv_b.unflatten(0, (self.heads, self.nope + self.value))
        heads = LatentHeads(*kv_b.split((self.nope, self.value), dim=1))
        new = torch.cat((latent[:, :, None], k_rope), dim=-1)
        return cache.attend_latent(self.layer, (q_nope, q_rope), new, heads, positions, self.scale)
