"""Model configurations under Hugging Face's names, read from and written to `config.json`.

`ModelConfig` is what every family shares, and what the rest of the package asks of a family: its
tensors, experts, cache, rotary width and how it splits over ranks. A family is a subclass in a
file of its own, known by `register_config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from llamaseek.errors import UserError, bad_value, unknown_name
from llamaseek.herd.panels import Box, Panel, gated_panel

SCORING = "ForSequenceClassification"
ROUTING_BIAS = "e_score_correction_bias"
"""A buffer of routers: no parameter, and float32 in every folder."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerRun:
    """Consecutive layers [start, stop) that hold the same tensors; `note` says of which kind."""

    start: int
    stop: int
    note: str = ""

    @property
    def count(self) -> int:
        """How many layers there are."""
        return self.stop - self.start


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was first trained on.

    `llama3` uses factor, low/high_freq_factor and the original length (8 for Llama 3.1, 32 for
    3.2); `yarn` uses factor, the original length, beta_fast/slow and the two mscales.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        if self.rope_type not in ("llama3", "yarn"):
            raise bad_value("rope_scaling.rope_type", self.rope_type, "llama3 or yarn")
        if self.factor < 1:
            raise bad_value("rope_scaling.factor", self.factor, "a number of at least 1")

    def to_dict(self) -> dict[str, Any]:
        """The keys this type of scaling has in `config.json`."""
        shared = ["rope_type", "factor", "original_max_position_embeddings"]
        own = {
            "llama3": ["low_freq_factor", "high_freq_factor"],
            "yarn": ["beta_fast", "beta_slow", "mscale", "mscale_all_dim"],
        }[self.rope_type]
        return {key: getattr(self, key) for key in shared + own}


MASKED = "is a masked language model (is_causal: false): it fills in words and cannot generate text"
"""Why such a model is refused where text is to be generated."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every family shares. Sizes are counts; `rope_theta` is the rotary base.

    The methods answer for a dense decoder with SwiGLU; a family overrides those that differ and
    defines `attention_tensors`, `attention_panel`, `cache_width`, `rotary_width` and `head_widths`.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    may_be_zero: ClassVar[frozenset[str]] = frozenset()  # integer fields that 0 is allowed in
    # Whether YaRN's temperature goes into the softmax scale instead of the rotary tables.
    yarn_scales_softmax: ClassVar[bool] = False

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    # False runs the same trunk bidirectionally, for masked-language-model training.
    is_causal: bool = True
    # A reward model: one number per token (`score.weight`) instead of logits.
    is_reward_model: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value, least = getattr(self, item.name), int(item.name not in self.may_be_zero)
            integer = item.type in (int, "int")
            if integer and (not isinstance(value, int) or value < least):
                raise bad_value(f"model.{item.name}", value, f"an integer of at least {least}")

    @classmethod
    def default_sizes(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Field values that follow from `sizes` where they do not give them."""
        return {}

    @classmethod
    def default_published(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """The same for the `sizes` of a `config.json`, which may leave out more."""
        return {}

    @property
    def family(self) -> str:
        """The name that the config's class is registered under, as in `model.family`."""
        return next(name for name, kind in FAMILIES.items() if kind is type(self))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, readable by transformers."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        architecture = self.architecture
        if data.pop("is_reward_model"):  # transformers identifies it by the architecture
            architecture = architecture.replace("ForCausalLM", SCORING)
            data |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        # transformers 5 keeps the rotary base and its scaling together; older readers want both.
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.rope_scaling is not None:
            rope = self.rope_scaling.to_dict()
            data["rope_scaling"] = rope
        data["rope_parameters"] = {**rope, "rope_theta": self.rope_theta}
        return {
            "architectures": [architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "attention_bias": False,
            **data,
        }

    # Layers and tensors

    @property
    def multi_token_depth(self) -> int:
        """Multi-token modules behind the main layers, each one more layer in a folder."""
        return 0

    def without_multi_token(self) -> Self:
        """The config without its multi-token modules."""
        return self

    @property
    def layer_count(self) -> int:
        """Layers in a folder: the main ones, then the multi-token modules."""
        return self.num_hidden_layers + self.multi_token_depth

    def layer_runs(self) -> Iterator[LayerRun]:
        """All layers in order, consecutive ones of the same kind together."""
        yield LayerRun(0, self.num_hidden_layers)

    def attention_tensors(self) -> dict[str, Shape]:
        """Names relative to `model.layers.N.self_attn.`, and shapes; the same in every layer."""
        raise NotImplementedError

    def feed_forward_tensors(self, layer: int) -> dict[str, Shape]:
        """Names relative to `model.layers.N.mlp.`, and shapes."""
        return gated_tensors(self.hidden_size, self.intermediate_size)

    def further_tensors(self, layer: int) -> dict[str, Shape]:
        """Names relative to `model.layers.N.`: what is neither of these nor one of two norms."""
        return {}

    # Experts

    @property
    def num_experts(self) -> int:
        """Routed experts of a mixture layer; 0 where every layer is dense."""
        return 0

    @property
    def experts_per_token(self) -> int:
        """Routed experts that one token is sent to."""
        return 0

    @property
    def expert_width(self) -> int:
        """Inner width of a routed expert."""
        return 0

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the layer routes tokens to experts."""
        return False

    # Attention

    @property
    def cache_width(self) -> int:
        """Numbers that one layer caches a token."""
        raise NotImplementedError

    @property
    def rotary_width(self) -> int:
        """Width of the part of a head that is rotated, an even number."""
        raise NotImplementedError

    @property
    def head_widths(self) -> int:
        """Numbers of a key and of a value of one query head, as attention multiplies with them."""
        raise NotImplementedError

    # Tensor parallel

    @property
    def tensor_parallel_heads(self) -> int:
        """Heads that a degree of tensor parallel must divide."""
        return self.num_attention_heads

    def inner_widths(self) -> dict[str, int]:
        """Inner widths of feed-forwards by the field that holds them."""
        return {"intermediate_size": self.intermediate_size}

    def tensor_parallel_sizes(self) -> dict[str, int]:
        """Everything that a degree of tensor parallel must divide, by what it is called."""
        heads = {"the attention heads": self.tensor_parallel_heads}
        return heads | self.inner_widths() | {"the vocabulary": self.vocab_size}

    def tensor_shard(self, ranks: int) -> Self:
        """The config of one of `ranks` equal shards; the vocabulary stays whole."""
        widths: dict[str, Any] = {name: w // ranks for name, w in self.inner_widths().items()}
        return replace(self, num_attention_heads=self.num_attention_heads // ranks, **widths)

    # The diagram

    def attention_panel(self) -> Panel:
        """How attention is computed, drawn."""
        raise NotImplementedError

    def feed_forward_box(self) -> Box:
        """The feed-forward within a layer, drawn."""
        return Box("Feed-forward", f"SwiGLU, {self.intermediate_size:,} wide", "part")

    def feed_forward_panel(self) -> Panel:
        """How the feed-forward is computed, drawn."""
        return gated_panel(self.intermediate_size)

    def further_panels(self) -> Iterator[Panel]:
        """What else the diagram shows."""
        yield from ()

    def rotary_detail(self) -> str:
        """The rotary base or its scaling in a few words."""
        scaling = self.rope_scaling
        if scaling is None:
            return f"base {self.rope_theta:g}"
        return f"{scaling.rope_type} × {scaling.factor:g}"


def gated_tensors(width: int, inner: int) -> dict[str, Shape]:
    """The three matrices of a SwiGLU from `width` to `inner` and back."""
    return {
        "gate_proj.weight": (inner, width),
        "up_proj.weight": (inner, width),
        "down_proj.weight": (width, inner),
    }


FAMILIES: dict[str, type[ModelConfig]] = {}


def register_config(family: str, kind: type[ModelConfig]) -> None:
    """Make `kind` known as `model.family: {family}` and by its `model_type` in `config.json`.

    Raises UserError where another class has the name or the `model_type` already.
    """
    for name, known in FAMILIES.items():
        if known is not kind and (name == family or known.model_type == kind.model_type):
            raise UserError(f"model.family: {name} is registered for {known.__name__} already")
    FAMILIES[family] = kind


def config_from_sizes(family: str, sizes: dict[str, Any]) -> ModelConfig:
    """A config of a registered `family` from field values; unknown keys are errors."""
    if family not in FAMILIES:
        raise unknown_name("model.family", family, list(FAMILIES))
    kind = FAMILIES[family]
    known = [item.name for item in fields(kind)]
    for key in sizes:
        if key not in known:
            raise unknown_name("model.config key", key, known)
    sizes = dict(sizes)
    if isinstance(sizes.get("rope_scaling"), dict):
        sizes["rope_scaling"] = _rope_scaling(sizes["rope_scaling"])
    sizes |= kind.default_sizes(sizes)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.name not in sizes]
    if required:
        raise UserError(f"model.config lacks {', '.join(required)}")
    return kind(**sizes)


def config_from_dict(data: dict[str, Any]) -> ModelConfig:
    """The config of a `config.json`; keys that only other software uses are passed over.

    Raises `UserError` for an unknown `model_type` and for settings this code would run wrongly.
    """
    model_type = data.get("model_type")
    by_type = {kind.model_type: (name, kind) for name, kind in FAMILIES.items()}
    if model_type not in by_type:
        raise bad_value("config.json model_type", model_type, " or ".join(by_type))
    _refuse_unsupported(data)
    family, kind = by_type[model_type]
    known = {item.name for item in fields(kind)}
    sizes = {key: value for key, value in data.items() if key in known and value is not None}
    sizes["is_reward_model"] = _is_scoring(data)
    rope = data.get("rope_parameters") or {}
    sizes["rope_theta"] = float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))
    sizes["rope_scaling"] = _rope_scaling(data.get("rope_scaling") or rope)
    if isinstance(sizes.get("eos_token_id"), list):
        sizes["eos_token_id"] = tuple(sizes["eos_token_id"])
    return config_from_sizes(family, kind.default_published(sizes) | sizes)


def _is_scoring(data: dict[str, Any]) -> bool:
    """Whether a `config.json` is a reward model's; UserError for a classifier of more classes."""
    names = data.get("architectures") or [""]
    if not str(names[0]).endswith(SCORING):
        return False
    labels = data.get("id2label") or {}
    if len(labels) != 1:
        raise bad_value("config.json id2label", labels, "one label, as reward models have")
    return True


def _rope_scaling(data: dict[str, Any]) -> RopeScaling | None:
    rope_type = data.get("rope_type", data.get("type", "default"))
    if rope_type == "default":
        return None
    known = {item.name for item in fields(RopeScaling)}
    values = {key: value for key, value in data.items() if key in known and value is not None}
    try:
        return RopeScaling(**{**values, "rope_type": rope_type})
    except TypeError as error:
        raise UserError(f"rope_scaling lacks a key: {error}") from None


def _refuse_unsupported(data: dict[str, Any]) -> None:
    wanted = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "rope_interleave": True,
    }
    for key, value in wanted.items():
        if key in data and data[key] != value:
            raise bad_value(f"config.json {key}", data[key], repr(value))
    quantized = data.get("quantization_config")
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    packed = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    kinds = (blocks, packed)
    if quantized and not any(kind.items() <= quantized.items() for kind in kinds):
        allowed = f"none, {blocks}, or {packed}"
        raise bad_value("config.json quantization_config", quantized, allowed)


def extended(config: ModelConfig, to: int, rope: str, factor: float | None = None) -> ModelConfig:
    """`config` for contexts of `to` tokens, by "yarn" or "llama3" scaling.

    The factor, unless given, is `to` over the length before any scaling; in later stages over the
    same length. DeepSeek-V3 (§4.3) scales by 40 in both of its stages, to 32k and 128k, and puts
    YaRN's temperature into the softmax scale; Llama 3.1 scales 8,192 by 8 for 128k.
    Raises UserError if `to` is not longer than the context is now.
    """
    if to <= config.max_position_embeddings:
        allowed = f"more than the model's {config.max_position_embeddings} tokens"
        raise bad_value("model.extend.to", to, allowed)
    before = config.rope_scaling
    first = before.original_max_position_embeddings if before else config.max_position_embeddings
    in_softmax = rope == "yarn" and config.yarn_scales_softmax
    scaling = RopeScaling(
        rope_type=rope,
        factor=factor or to / first,
        original_max_position_embeddings=first,
        mscale_all_dim=1.0 if in_softmax else 0.0,
    )
    return replace(config, max_position_embeddings=to, rope_scaling=scaling)
