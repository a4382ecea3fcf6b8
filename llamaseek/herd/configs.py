"""Model configurations under Hugging Face's names, read from and written to `config.json`.

Sources: transformers' `LlamaConfig` and `DeepseekV3Config`; the DeepSeek-V3 report §2 and §4.2.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar

from llamaseek.errors import UserError, bad_value, unknown_name

SCORING = "ForSequenceClassification"


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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What both families share. Sizes are counts; `rope_theta` is the rotary base."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]

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
    # A reward model: one number a token (`score.weight`) where others have a vocabulary.
    is_reward_model: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value, least = getattr(self, item.name), self._least(item.name)
            if item.type == "int" and (not isinstance(value, int) or value < least):
                raise bad_value(f"model.{item.name}", value, f"an integer of at least {least}")

    def _least(self, name: str) -> int:
        may_be_zero = ("first_k_dense_replace", "num_nextn_predict_layers", "n_shared_experts")
        return 0 if name in may_be_zero else 1

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, readable by transformers."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        architecture = self.architecture
        if data.pop("is_reward_model"):  # transformers tells by the architecture
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


@dataclass(frozen=True, kw_only=True)
class Llama3Config(ModelConfig):
    """Llama 3, 3.1, 3.2 and 3.3: grouped-query attention and SwiGLU (Llama 3 paper §3.2)."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"

    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.num_key_value_heads:
            raise bad_value(
                "model.num_key_value_heads",
                self.num_key_value_heads,
                f"a divisor of num_attention_heads ({self.num_attention_heads})",
            )
        if self.head_dim % 2:
            raise bad_value("model.head_dim", self.head_dim, "an even number (rotary pairs)")


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(ModelConfig):
    """DeepSeek-V3: latent attention, mixture of experts, multi-token prediction (report §2)."""

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"

    q_lora_rank: int | None = None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    num_nextn_predict_layers: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    rope_interleave: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        experts, groups = self.n_routed_experts, self.n_group
        if experts % groups:
            raise bad_value("model.n_group", groups, f"a divisor of n_routed_experts ({experts})")
        if self.topk_group > groups:
            raise bad_value("model.topk_group", self.topk_group, f"at most n_group ({groups})")
        if self.num_experts_per_tok > experts // groups * self.topk_group:
            raise bad_value(
                "model.num_experts_per_tok",
                self.num_experts_per_tok,
                f"at most the experts of the kept groups ({experts // groups * self.topk_group})",
            )
        if self.qk_rope_head_dim % 2:
            raise bad_value("model.qk_rope_head_dim", self.qk_rope_head_dim, "an even number")

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head when expanded."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        data["num_key_value_heads"] = self.num_attention_heads
        data["head_dim"] = self.qk_rope_head_dim
        data.update(scoring_func="sigmoid", topk_method="noaux_tc")
        data.setdefault("q_lora_rank", None)
        return data


FAMILIES: dict[str, type[ModelConfig]] = {"llama3": Llama3Config, "deepseek_v3": DeepseekV3Config}
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES.values()}


def config_from_sizes(family: str, sizes: dict[str, Any]) -> ModelConfig:
    """A config of `family` ("llama3", "deepseek_v3") from field values; unknown keys are errors."""
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
    if kind is Llama3Config and not sizes.get("head_dim") and sizes.get("num_attention_heads"):
        sizes["head_dim"] = sizes.get("hidden_size", 0) // sizes["num_attention_heads"]
    required = [f.name for f in fields(kind) if f.default is MISSING and f.name not in sizes]
    if required:
        raise UserError(f"model.config lacks {', '.join(required)}")
    return kind(**sizes)


def config_from_dict(data: dict[str, Any]) -> ModelConfig:
    """The config of a `config.json`; keys that only other software uses are passed over.

    Raises `UserError` for an unknown `model_type` and for settings this code would run wrongly.
    """
    model_type = data.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        raise bad_value("config.json model_type", model_type, " or ".join(BY_MODEL_TYPE))
    _refuse_unsupported(data)
    kind = BY_MODEL_TYPE[model_type]
    known = {item.name for item in fields(kind)}
    sizes = {key: value for key, value in data.items() if key in known and value is not None}
    sizes["is_reward_model"] = _is_scoring(data)
    rope = data.get("rope_parameters") or {}
    sizes["rope_theta"] = float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))
    sizes["rope_scaling"] = _rope_scaling(data.get("rope_scaling") or rope)
    if isinstance(sizes.get("eos_token_id"), list):
        sizes["eos_token_id"] = tuple(sizes["eos_token_id"])
    if kind is Llama3Config:
        sizes.setdefault("num_key_value_heads", sizes.get("num_attention_heads"))
    family = next(name for name, known_kind in FAMILIES.items() if known_kind is kind)
    return config_from_sizes(family, sizes)


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
    in_softmax = rope == "yarn" and isinstance(config, DeepseekV3Config)
    scaling = RopeScaling(
        rope_type=rope,
        factor=factor or to / first,
        original_max_position_embeddings=first,
        mscale_all_dim=1.0 if in_softmax else 0.0,
    )
    return replace(config, max_position_embeddings=to, rope_scaling=scaling)
