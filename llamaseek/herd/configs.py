"""Model configurations under Hugging Face's names, read from and written to `config.json`.

`ModelConfig` is what every family shares, and what the rest of the package asks of a family: its
tensors, experts, cache, rotary width and how it splits over ranks. A family is a subclass in a
file of its own, known by `register_config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Self

from llamaseek.errors import UserError, bad_value, shorten, unknown_name
from llamaseek.herd.limits import check_experts, check_field
from llamaseek.herd.panels import Box, Panel, gated_panel
from llamaseek.herd.rotary import RopeScaling, read_scaling

SCORING = "ForSequenceClassification"
ROUTING_BIAS = "e_score_correction_bias"
"""A buffer of routers: no parameter, and float32 in every folder."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LatentWidths:
    """Widths in latent attention: of the latents of queries (None: they have none) and of keys and
    values, and of a head's parts.
    """

    query: int | None
    key_value: int
    plain: int
    rotary: int
    value: int

    @property
    def gathered(self) -> int:
        """Numbers a token of keys' and values' latent with its rotary key."""
        return self.key_value + self.rotary


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
    title: ClassVar[str] = ""  # what a `model_type` stands for, in messages
    # Of a `config.json`: what transformers takes for missing keys, those that may be null because
    # they follow from others, and the values that a key with no field here may have.
    published_defaults: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-6}
    derived: ClassVar[tuple[str, ...]] = ()
    published_values: ClassVar[dict[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
    }

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
            least = int(item.name not in self.may_be_zero)
            check_field(item.name, item.type, getattr(self, item.name), least)
        if self.rope_theta <= 1:
            raise bad_value("model.rope_theta", self.rope_theta, "a number above 1")
        check_experts(self.num_hidden_layers, self.num_experts)

    @classmethod
    def default_sizes(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Field values that follow from `sizes` where they do not give them."""
        return {}

    @classmethod
    def default_published(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """What transformers takes for keys that a `config.json` with these `sizes` lacks."""
        return cls.published_defaults

    @classmethod
    def check_published(cls, data: dict[str, Any]) -> None:
        """UserError for keys of a `config.json` that contradict what this family computes."""

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

    @property
    def shared_experts(self) -> int:
        """Experts of a mixture layer that every token is sent to, of the routed ones' width."""
        return 0

    # Attention

    @property
    def latents(self) -> LatentWidths | None:
        """The sizes of latent attention; None where keys and values are projected directly."""
        return None

    @property
    def query_head_width(self) -> int:
        """Width of a head's query, and of the key that it is multiplied with."""
        raise NotImplementedError

    @property
    def key_heads(self) -> int:
        """Heads of keys and values that attention multiplies with."""
        return self.num_attention_heads

    @property
    def cache_heads(self) -> int:
        """Heads of the cache, which tensor ranks split."""
        return self.key_heads

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
PLUGINS = "llamaseek.families"
"""The group of entry points by which installed packages add families."""


def register_config(family: str, kind: type[ModelConfig]) -> None:
    """Make `kind` known as `model.family: {family}` and by its `model_type` in `config.json`.

    Raises UserError where another class has the name or the `model_type` already.
    """
    for name, known in FAMILIES.items():
        if known is not kind and (name == family or known.model_type == kind.model_type):
            raise UserError(f"model.family: {name} is registered for {known.__name__} already")
    FAMILIES[family] = kind


def find_family(family: str) -> type[ModelConfig]:
    """The config class registered under this name. UserError for a name that nobody registers."""
    if family not in FAMILIES:
        load_plugins()
    if family not in FAMILIES:
        raise unknown_name("model.family", family, list(FAMILIES))
    return FAMILIES[family]


@cache
def load_plugins() -> None:
    """Let installed packages register their families, once: each entry point of the group
    `llamaseek.families` is a function without arguments that calls `models.register_family`.

    It is called where a family or a `model_type` is not known otherwise, so that nothing imports a
    plugin (and PyTorch with it) before it is needed. UserError for one that fails.
    """
    for found in entry_points(group=PLUGINS):
        try:
            found.load()()
        except Exception as error:
            reason = shorten(f"{type(error).__name__}: {error}")
            raise UserError(f"{PLUGINS} entry point {found.name} fails: {reason}") from error


def config_from_sizes(family: str, sizes: dict[str, Any]) -> ModelConfig:
    """A config of a registered `family` from field values; unknown keys are errors."""
    kind = find_family(family)
    known = [item.name for item in fields(kind)]
    for key in sizes:
        if key not in known:
            raise unknown_name("model.config key", key, known)
    sizes = dict(sizes)
    if isinstance(sizes.get("rope_scaling"), dict):
        length = sizes.get("max_position_embeddings", kind.max_position_embeddings)
        sizes["rope_scaling"] = read_scaling(sizes["rope_scaling"], length)
    sizes |= kind.default_sizes(sizes)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.name not in sizes]
    if required:
        raise UserError(f"model.config lacks {', '.join(required)}")
    return kind(**sizes)


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
    if before is not None and before.rope_type == "linear":
        raise UserError("model.extend: the model's rope_scaling is linear, which is not extended")
    first = before.original_max_position_embeddings if before else config.max_position_embeddings
    in_softmax = rope == "yarn" and config.yarn_scales_softmax
    scaling = RopeScaling(
        rope_type=rope,
        factor=factor or to / first,
        original_max_position_embeddings=first,
        mscale=float(in_softmax),
        mscale_all_dim=float(in_softmax),
    )
    return replace(config, max_position_embeddings=to, rope_scaling=scaling)
