"""What a layer keeps for its backward pass, as llamaseek's own models run it.

Counted operation by operation after `models/` and held to what autograd really saves by
`tests/plan/test_activations.py`. D width, F feed-forward width, H heads, K key-value heads,
W query width, N tokens, T time, c bytes of a number in matrix products (2 in bf16, 4 in fp32).
Norms and the router compute in fp32 whatever c is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from llamaseek.herd import ModelConfig
from llamaseek.herd.configs import LatentWidths

FLOAT, INTEGER = 4, 8
BLOCK, BLOCKED_LENGTH = 128, 1024  # `models/attention.py` on CPUs


@dataclass(frozen=True)
class TrainingPass:
    """One forward and backward of `rows` × `length` tokens on one device.

    `number` is c; `length` is what one context rank holds of a row, whose tokens `tensor` ranks
    share between blocks; `blocked` says that attention keeps its weights (short rows on a CPU);
    `adapters` names the linear layers that LoRA of `rank` trains, None that everything trains.
    """

    rows: int
    length: int
    number: int = 2
    blocked: bool = False
    adapters: frozenset[str] | None = None
    rank: int = 0
    tensor: int = 1
    context: int = 1
    expert: int = 1
    fp8_dispatch: bool = False

    @property
    def tokens(self) -> int:
        """Rows × length."""
        return self.rows * self.length

    def trains(self, name: str) -> bool:
        """Whether the layer called `name` has weights that need their input again."""
        return self.adapters is None or name in self.adapters

    def kept(self, width: int, *names: str) -> int:
        """Bytes a token of an input of `width` that the layers `names` share."""
        adapted = 0 if self.adapters is None else len(self.adapters.intersection(names))
        whole = self.number * width if any(map(self.trains, names)) else 0
        return whole + self.number * self.rank * adapted

    def norm(self, width: int) -> int:
        """Bytes a token of an RMSNorm: its fp32 input, the scaled input, the scale."""
        return FLOAT * (width * (1 if self.adapters is not None else 2) + 1)


def layer_saved(config: ModelConfig, layer: int, run: TrainingPass) -> float:
    """Bytes that layer `layer` keeps from forward to backward on one rank, copies of weights apart.

    Tensor ranks split heads and inner widths of all tokens, and the tokens of what is not split.
    """
    width, ranks = config.hidden_size, run.tensor
    token = 2 * run.norm(width) / ranks
    if config.latents is not None:
        token += _latent_attention(config, config.latents, run)
    else:
        queries = config.num_attention_heads * config.query_head_width
        token += run.kept(width, "q_proj", "k_proj", "v_proj")
        # What the output projection reads is the fused kernel's output, counted there.
        token += run.kept(queries if run.blocked else 0, "o_proj") / ranks
    if config.is_moe_layer(layer):
        token += _mixture(config, run)
    else:
        token += _gated(width, config.intermediate_size, run)
    if layer >= config.num_hidden_layers:
        token += (2 * run.norm(width) + run.kept(2 * width, "eh_proj")) / ranks
    return token * run.tokens + attention_core(config, run)


def selectively_kept(config: ModelConfig, layer: int, run: TrainingPass) -> float:
    """Bytes that "selective" recomputation keeps of a layer beside its input: what products and
    attention kernels give, what ranks sent, and neither latent attention's up-projections nor
    experts' products (`models/recompute.py`). The last product's result is needed by nothing.
    """
    heads = config.num_attention_heads / run.tensor
    width, queries = config.hidden_size / run.tensor, config.query_head_width * heads
    if config.latents is not None:
        latents = (config.latents.query or 0) + config.latents.gathered
        token = run.number * (latents / run.tensor + queries + width)
    else:
        keys = config.key_heads / run.tensor * config.query_head_width
        token = run.number * (2 * queries + 2 * keys + width)
    token += FLOAT * heads
    if not config.is_moe_layer(layer):
        return run.tokens * (token + run.number * 2 * config.intermediate_size / run.tensor)
    inner = config.expert_width * config.shared_experts
    token += FLOAT * config.num_experts / run.tensor + run.number * 2 * inner / run.tensor
    sent = (1 + FLOAT / 128 if run.fp8_dispatch else run.number) * (run.expert > 1)
    return run.tokens * (token + sent * config.experts_per_token * width)


def attention_core(config: ModelConfig, run: TrainingPass) -> float:
    """Bytes kept by softmax(q k) v itself, all rows: a tensor rank's heads, a context rank's
    queries against the keys of whole rows.
    """
    heads = config.num_attention_heads / run.tensor
    # Values that are narrower are padded to the keys' width.
    key_heads, query = config.key_heads / run.tensor, config.query_head_width
    if not run.blocked:
        # query, output; key, value
        widths = 2 * heads * query + 2 * run.context * key_heads * query
        return run.tokens * (run.number * widths + FLOAT * heads)
    split = run.context > 1
    keys = run.length * run.context
    seen = run.length * keys if split else pairs(run.length, keys_only=False)
    # Each block copies its keys and values, unless there is one row, where they are views.
    copies = pairs(run.length, keys_only=True) if run.rows > 1 else run.length
    if split:  # every block sees all keys
        copies = keys * (ceil(run.length / BLOCK) if run.rows > 1 else 1)
    widths = seen * heads + query * (run.length * heads + 2 * copies * key_heads)
    return run.rows * run.number * widths


def rotary_tables(config: ModelConfig, run: TrainingPass) -> int:
    """Bytes of the fp32 cosines and sines that all layers share."""
    return FLOAT * config.rotary_width * run.tokens


def widest_gradient(config: ModelConfig, layer: int, run: TrainingPass) -> int:
    """Bytes of activation gradients alive when the backward pass enters a layer: the residual
    stream's, and those of both halves of the gated product or of the experts' outputs and inputs.
    """
    width, inner = config.hidden_size, 2 * config.intermediate_size
    if config.is_moe_layer(layer):
        inner = config.experts_per_token * (width + config.expert_width)
    return run.number * run.tokens * (width + inner)


def pairs(length: int, keys_only: bool) -> int:
    """Query-key pairs that blocked causal attention computes, or keys summed over its blocks."""
    total = 0
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        total += stop if keys_only else (stop - start) * stop
    return total


def _latent_attention(config: ModelConfig, latents: LatentWidths, run: TrainingPass) -> float:
    """Projections and latent norms; a token. Latents are gathered by tensor and context ranks."""
    width, rank, rope = config.hidden_size, latents.key_value, latents.rotary
    values = config.num_attention_heads * latents.value
    token = run.kept(values, "o_proj") / run.tensor
    if latents.query is None and run.tensor > 1:  # all tokens' inputs, and its own
        token += run.kept(width, "q_proj") + run.kept(width, "kv_a_proj_with_mqa") / run.tensor
    else:
        query = "q_proj" if latents.query is None else "q_a_proj"
        token += run.kept(width, query, "kv_a_proj_with_mqa") / run.tensor
    # In fp32 the norm's input is a view of the projection, whose rotary part stays with it.
    token += run.norm(rank) + (FLOAT * rope if run.number == FLOAT else 0)
    token += run.context * run.kept(rank, "kv_b_proj")
    if latents.query is not None:
        token += run.norm(latents.query) + run.kept(latents.query, "q_b_proj")
    return token


def _gated(width: int, inner: int, run: TrainingPass) -> float:
    """SwiGLU: its input, gate, silu(gate), up, and the product; a token."""
    token = 3 * run.number * inner + run.kept(inner, "down_proj")
    return run.kept(width, "gate_proj", "up_proj") + token / run.tensor


def _mixture(config: ModelConfig, run: TrainingPass) -> float:
    """Router, routed experts (never adapted) and shared experts; a token."""
    width, inner, common = config.hidden_size, config.expert_width, config.shared_experts
    chosen, full = config.experts_per_token, run.adapters is None
    router = FLOAT * (config.num_experts + chosen + 2) + INTEGER * 3 * chosen
    if full and (run.number < FLOAT or not common or run.tensor > 1):
        router += FLOAT * width  # the router's fp32 input, in fp32 also the shared experts'
    # gate and up, silu, their product, the product with the gates; gates; inputs.
    inside = run.number * (4 + full) * inner / run.tensor
    expert = inside + run.number * (full * width + 1)
    shared = _gated(width, inner * common, run) if common else 0
    return router / run.tensor + chosen * expert + shared
