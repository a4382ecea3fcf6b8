"""What a block diagram shows of an architecture: panels of rows of boxes, from a config alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamaseek.herd.configs import DeepseekV3Config, Llama3Config, ModelConfig


@dataclass(frozen=True)
class Box:
    """One operation. `kind` picks its colour: linear, norm, op, cache or part."""

    title: str
    detail: str = ""
    kind: str = "op"


Row = tuple[Box | None, ...]
"""Boxes side by side; None lets the line from below pass."""


@dataclass(frozen=True)
class Panel:
    """Rows from the bottom up, each fed by the one below. `looped` are the rows of one layer.

    `residuals` are spans (first, last) of rows around which the input is carried to be added.
    """

    title: str
    rows: tuple[Row, ...]
    looped: tuple[int, int] | None = None
    loop_label: str = ""
    residuals: tuple[tuple[int, int], ...] = ()


def panels(config: ModelConfig) -> Iterator[Panel]:
    """The trunk, then its attention and feed-forward, then multi-token prediction if it has any."""
    yield _trunk(config)
    if isinstance(config, DeepseekV3Config):
        yield _latent_attention(config)
        if config.first_k_dense_replace < config.num_hidden_layers:
            yield _mixture(config)
        else:
            yield _gated(config.intermediate_size)
        if config.num_nextn_predict_layers:
            yield _multi_token(config)
    else:
        assert isinstance(config, Llama3Config)
        yield _grouped_attention(config)
        yield _gated(config.intermediate_size)


def _trunk(config: ModelConfig) -> Panel:
    latent = isinstance(config, DeepseekV3Config)
    attention = "Latent attention" if latent else "Grouped-query attention"
    tied = "weights shared with the embedding" if config.tie_word_embeddings else "linear"
    rows: tuple[Row, ...] = (
        (Box("tokens", f"up to {config.max_position_embeddings:,}"),),
        (Box("Embedding", f"{config.vocab_size:,} × {config.hidden_size:,}", "linear"),),
        (Box("RMSNorm", kind="norm"),),
        (Box(attention, f"{config.num_attention_heads} heads", "part"),),
        (Box("+"),),
        (Box("RMSNorm", kind="norm"),),
        (_feed_forward(config),),
        (Box("+"),),
        (Box("RMSNorm", kind="norm"),),
        (Box("Head", tied, "linear"),),
        (Box("logits", f"{config.vocab_size:,} classes"),),
    )
    width = f"width {config.hidden_size:,}"
    label = f"× {config.num_hidden_layers} layers, {width}"
    return Panel("Model", rows, (2, 7), label, residuals=((2, 4), (5, 7)))


def _feed_forward(config: ModelConfig) -> Box:
    if not isinstance(config, DeepseekV3Config):
        return Box("Feed-forward", f"SwiGLU, {config.intermediate_size:,} wide", "part")
    dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    if dense == config.num_hidden_layers:
        return Box("Feed-forward", f"SwiGLU, {config.intermediate_size:,} wide", "part")
    first = f"first {dense}: SwiGLU, {config.intermediate_size:,} wide" if dense else ""
    return Box("Mixture of experts", first, "part")


def _grouped_attention(config: Llama3Config) -> Panel:
    heads, keys, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rotary = Box("RoPE", _rotary(config))
    rows: tuple[Row, ...] = (
        (Box("hidden", f"{config.hidden_size:,}"),),
        (
            Box("q_proj", f"{heads} × {width}", "linear"),
            Box("k_proj", f"{keys} × {width}", "linear"),
            Box("v_proj", f"{keys} × {width}", "linear"),
        ),
        (rotary, rotary, None),
        (None, Box("keys", "cached", "cache"), Box("values", "cached", "cache")),
        (Box("softmax(q kᵀ / √d) v", f"{heads // keys} query heads share a key-value head"),),
        (Box("o_proj", f"{heads * width:,} → {config.hidden_size:,}", "linear"),),
    )
    return Panel("Grouped-query attention", rows)


def _rotary(config: ModelConfig) -> str:
    scaling = config.rope_scaling
    return f"{scaling.rope_type} × {scaling.factor:g}" if scaling else f"base {config.rope_theta:g}"


def _latent_attention(config: DeepseekV3Config) -> Panel:
    heads, rank, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    query = Box("q_proj", f"{heads} × ({nope} + {rope})", "linear")
    first, norm, last = query, None, None
    if config.q_lora_rank is not None:
        first = Box("q_a_proj", f"→ {config.q_lora_rank:,}", "linear")
        norm, last = Box("RMSNorm", kind="norm"), Box("q_b_proj", query.detail, "linear")
    rows: tuple[Row, ...] = (
        (Box("hidden", f"{config.hidden_size:,}"),),
        (first, Box("kv_a_proj", f"→ {rank} + {rope}", "linear")),
        (norm, Box("RMSNorm, RoPE", f"on {rank}; on {rope}", "norm")),
        (None, Box("latent + rotary key", f"{rank + rope} numbers cached", "cache")),
        (last, Box("kv_b_proj", f"{heads} × ({nope} k + {value} v)", "linear")),
        (Box("RoPE", f"on {rope}, {_rotary(config)}"), None),
        (Box("softmax(q kᵀ · scale) v", f"one rotary key for all {heads} heads"),),
        (Box("o_proj", f"{heads * value:,} → {config.hidden_size:,}", "linear"),),
    )
    return Panel("Latent attention", rows)


def _gated(inner: int) -> Panel:
    rows: tuple[Row, ...] = (
        (Box("hidden"),),
        (Box("gate_proj", f"→ {inner:,}", "linear"), Box("up_proj", f"→ {inner:,}", "linear")),
        (Box("SiLU"), None),
        (Box("×", "element by element"),),
        (Box("down_proj", f"{inner:,} →", "linear"),),
    )
    return Panel("Feed-forward (SwiGLU)", rows)


def _mixture(config: DeepseekV3Config) -> Panel:
    experts, chosen, inner = (
        config.n_routed_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
    )
    shared = None
    if config.n_shared_experts:
        count = config.n_shared_experts
        shared = Box("Shared expert" + "s" * (count > 1), f"{count} × SwiGLU {inner:,}", "part")
    groups = f"{config.topk_group} of {config.n_group} groups, "
    gates = f"no bias, {'sum' if config.norm_topk_prob else '×'} {config.routed_scaling_factor:g}"
    rows: tuple[Row, ...] = (
        (Box("hidden", f"{config.hidden_size:,}"),),
        (Box("Router", "sigmoid, + bias to choose", "linear"), shared),
        (
            Box("top-k", (groups if config.n_group > 1 else "") + f"{chosen} of {experts}"),
            None,
        ),
        (Box(f"{chosen} routed experts", f"SwiGLU {inner:,} each", "part"), None),
        (Box("gates", gates), None),
        (Box("+"),),
    )
    return Panel("Mixture of experts", rows)


def _multi_token(config: DeepseekV3Config) -> Panel:
    width = config.hidden_size
    rows: tuple[Row, ...] = (
        (Box("hidden", "of the model"), Box("Embedding", "of the next token", "linear")),
        (Box("RMSNorm", "hnorm", "norm"), Box("RMSNorm", "enorm", "norm")),
        (Box("eh_proj", f"{2 * width:,} → {width:,}", "linear"),),
        (Box("One layer", "attention and experts of its own", "part"),),
        (Box("RMSNorm", "shared_head.norm", "norm"),),
        (Box("Head", "shared with the model", "linear"),),
        (Box("logits", "of the token after the next"),),
    )
    depth = config.num_nextn_predict_layers
    return Panel(f"Multi-token prediction × {depth}", rows)
