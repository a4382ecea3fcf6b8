"""The herd: the published models, their sizes and what they can do.

Sources: each model's `config.json` and card; The Llama 3 Herd of Models tables 1 and 3; the
DeepSeek-V3 report §4.2 and its README_WEIGHTS.md; SmolLM2 (Ben Allal et al. 2025), a Llama that is
small enough for a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from llamaseek.errors import unknown_name
from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.deepseek_v3 import DeepseekV3Config
from llamaseek.herd.llama3 import Llama3Config
from llamaseek.herd.rotary import RopeScaling


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the herd. `published_parameters` is what its makers state, to their digits;
    `stored` the format of a folder's weights, None for a model that is only known by its config.
    """

    name: str
    title: str
    repo: str | None
    config: ModelConfig
    fine_tuned: bool = False
    multilingual: bool = False
    long_context: bool = False
    tool_use: bool = False
    release: date | None = None
    license: str = "none"
    published_parameters: int | None = None
    stored: str | None = None

    @property
    def family(self) -> str:
        """`llama3`, `deepseek_v3`, or another that is registered."""
        return self.config.family

    @property
    def context(self) -> int:
        """The longest context, in tokens."""
        return self.config.max_position_embeddings


def find(name: str) -> Entry:
    """The entry called `name`; UserError names the nearest one."""
    try:
        return ENTRIES[name.lower()]
    except KeyError:
        raise unknown_name("model", name, list(ENTRIES)) from None


BEGIN, END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN = 128000, 128001, 128008, 128009
PAD = 128004
LLAMA_VOCABULARY = 128256


def _llama(width: int, layers: int, heads: int, inner: int) -> Llama3Config:
    return Llama3Config(
        vocab_size=LLAMA_VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=width // heads,
        bos_token_id=BEGIN,
        eos_token_id=END_OF_TEXT,
    )


def _longer(config: Llama3Config, factor: float) -> Llama3Config:
    """The same at 128k tokens of context (Llama 3.1 and later)."""
    scaling = RopeScaling("llama3", factor, original_max_position_embeddings=8192)
    return replace(config, max_position_embeddings=131072, rope_scaling=scaling, pad_token_id=PAD)


LLAMA_8B = _llama(4096, 32, 32, 14336)
LLAMA_70B = _llama(8192, 80, 64, 28672)
LLAMA_31_8B = _longer(LLAMA_8B, 8.0)
LLAMA_31_70B = _longer(LLAMA_70B, 8.0)
LLAMA_31_405B = _longer(_llama(16384, 126, 128, 53248), 8.0)
LLAMA_32_1B = replace(_longer(_llama(2048, 16, 32, 8192), 32.0), tie_word_embeddings=True)
LLAMA_32_3B = replace(_longer(_llama(3072, 28, 24, 8192), 32.0), tie_word_embeddings=True)

SMOLLM2 = Llama3Config(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
)
SMOLLM2_SIZES = {
    "135M": (SMOLLM2, 134_515_008),
    "360M": (
        replace(
            SMOLLM2,
            hidden_size=960,
            intermediate_size=2560,
            num_hidden_layers=32,
            num_attention_heads=15,
            num_key_value_heads=5,
        ),
        361_821_120,
    ),
    "1.7B": (
        replace(
            SMOLLM2,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            num_key_value_heads=32,
            rope_theta=130_000.0,
        ),
        1_711_376_384,
    ),
}
"""Sizes by name, with the parameters that the Hub counts."""

DEEPSEEK_V3 = DeepseekV3Config(
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=256,
    num_experts_per_tok=8,
    n_shared_experts=1,
    n_group=8,
    topk_group=4,
    first_k_dense_replace=3,
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=1,
    max_position_embeddings=163840,
    rope_scaling=RopeScaling(
        "yarn", 40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0
    ),
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)

# DeepSeek-V2-Lite's sizes under V3's routing: small enough to study on one GPU.
DEEPSEEK_LITE = DeepseekV3Config(
    vocab_size=102400,
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    first_k_dense_replace=1,
    routed_scaling_factor=1.0,
    max_position_embeddings=163840,
    rope_scaling=RopeScaling(
        "yarn", 40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707
    ),
    bos_token_id=100000,
    eos_token_id=100001,
    pad_token_id=100002,
)

TINY_LLAMA = Llama3Config(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)

TINY_DEEPSEEK = DeepseekV3Config(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=384,
    moe_intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    q_lora_rank=None,
    kv_lora_rank=48,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_routed_experts=16,
    num_experts_per_tok=2,
    n_shared_experts=1,
    first_k_dense_replace=1,
    routed_scaling_factor=1.0,
    num_nextn_predict_layers=1,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)

# Counted once: a tied head is the embedding.
PARAMETERS = {
    "1B": 1_235_814_400,
    "3B": 3_212_749_824,
    "8B": 8_030_261_248,
    "70B": 70_553_706_496,
    "405B": 405_853_388_800,
}


def _pair(
    version: str, size: str, config: Llama3Config, release: date, ends: tuple[int, ...]
) -> list[Entry]:
    """A base model and its Instruct version; from 3.1 on multilingual, long and calling tools."""
    new = version != "3"
    base = Entry(
        name=f"llama-{version}-{size.lower()}",
        title=f"Llama {version} {size}",
        repo=_repo(version, size),
        config=config,
        multilingual=new,
        long_context=new,
        release=release,
        license=f"Llama {version} Community",
        published_parameters=PARAMETERS[size],
    )
    instruct = replace(
        base,
        name=f"{base.name}-instruct",
        title=f"{base.title} Instruct",
        repo=f"{base.repo}-Instruct",
        config=replace(config, eos_token_id=ends),
        fine_tuned=True,
        tool_use=new,
    )
    return [base, instruct]


def _repo(version: str, size: str) -> str:
    return f"meta-llama/{'Meta-' if version == '3' else ''}Llama-{version}-{size}"


def _entries() -> list[Entry]:
    turns, tools = (END_OF_TEXT, END_OF_TURN), (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)
    april, july, september = date(2024, 4, 18), date(2024, 7, 23), date(2024, 9, 25)
    return [
        *_pair("3", "8B", LLAMA_8B, april, turns),
        *_pair("3", "70B", LLAMA_70B, april, turns),
        *_pair("3.1", "8B", LLAMA_31_8B, july, tools),
        *_pair("3.1", "70B", LLAMA_31_70B, july, tools),
        *_pair("3.1", "405B", LLAMA_31_405B, july, tools),
        *_pair("3.2", "1B", LLAMA_32_1B, september, tools),
        *_pair("3.2", "3B", LLAMA_32_3B, september, tools),
        _pair("3.3", "70B", LLAMA_31_70B, date(2024, 12, 6), tools)[1],
        _guard("3.1", "8B", LLAMA_31_8B, july, tools),
        _guard("3.2", "1B", LLAMA_32_1B, september, tools),
        *_smollm2(),
        *_deepseek(),
        *_study(),
    ]


def _guard(
    version: str, size: str, config: Llama3Config, release: date, ends: tuple[int, ...]
) -> Entry:
    """Llama Guard 3: an Instruct-sized classifier made from the base model of that version."""
    return Entry(
        name=f"llama-guard-3-{size.lower()}",
        title=f"Llama Guard 3 {size}",
        repo=f"meta-llama/Llama-Guard-3-{size}",
        config=replace(config, eos_token_id=ends),
        fine_tuned=True,
        multilingual=True,
        long_context=True,
        release=release,
        license=f"Llama {version} Community",
        published_parameters=PARAMETERS[size],
    )


def _smollm2() -> Iterator[Entry]:
    """SmolLM2: base and Instruct models of three sizes, of Llama's architecture."""
    for size, (config, parameters) in SMOLLM2_SIZES.items():
        base = Entry(
            name=f"smollm2-{size.lower()}",
            title=f"SmolLM2 {size}",
            repo=f"HuggingFaceTB/SmolLM2-{size}",
            config=config,
            release=date(2024, 11, 1),
            license="Apache 2.0",
            published_parameters=parameters,
        )
        yield base
        yield replace(
            base,
            name=f"{base.name}-instruct",
            title=f"{base.title} Instruct",
            repo=f"{base.repo}-Instruct",
            config=replace(config, bos_token_id=1, eos_token_id=2, pad_token_id=2),
            fine_tuned=True,
        )


def _deepseek() -> list[Entry]:
    base = Entry(
        name="deepseek-v3-base",
        title="DeepSeek-V3 Base",
        repo="deepseek-ai/DeepSeek-V3-Base",
        config=DEEPSEEK_V3,
        multilingual=True,
        long_context=True,
        release=date(2024, 12, 26),
        license="DeepSeek Model",
        published_parameters=671_000_000_000,
    )
    chat = replace(
        base,
        name="deepseek-v3",
        title="DeepSeek-V3",
        repo="deepseek-ai/DeepSeek-V3",
        fine_tuned=True,
        tool_use=True,
    )
    return [base, chat]


def _study() -> list[Entry]:
    """Configs that nobody published weights for, to plan and to learn with."""
    configs = {
        "deepseek-lite": ("DeepSeek-V3 at V2-Lite's size", DEEPSEEK_LITE),
        "tiny-llama3": ("Tiny Llama 3", TINY_LLAMA),
        "tiny-deepseek-v3": ("Tiny DeepSeek-V3", TINY_DEEPSEEK),
    }
    return [
        Entry(name=name, title=title, repo=None, config=config)
        for name, (title, config) in configs.items()
    ]


ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _entries()}
