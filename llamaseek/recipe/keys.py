"""Every key of a recipe, and which of them a run may change when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from llamaseek.errors import unknown_name
from llamaseek.recipe.schema import Recipe

FIXED = (
    "stage",
    "seed",
    "model.family",
    "model.config",
    "model.extend.to",
    "model.extend.rope",
    "model.extend.factor",
    "tokenizer.vocab_size",
    "tokenizer.chat_template",
    "tokenizer.chat_template_kwargs",
    "data.mix",
    "data.temperature",
    "data.budgets",
    "data.phases.start",
    "data.phases.mix",
    "data.fim",
    "data.long.tokens",
    "data.long.times",
    "data.mix_bytes",
    "data.rows",
    "data.holdout",
    "data.shuffle",
    "data.length",
    "data.isolate",
    "data.bad_rows",
    "data.format",
    "data.columns",
    "data.encoding",
    "train.objective",
    "train.batch",
    "train.lr",
    "train.warmup",
    "train.schedule",
    "train.betas",
    "train.optimizer",
    "train.moments",
    "train.weight_decay",
    "train.clip",
    "train.float8",
    "train.ema",
    "train.mtp_weight",
    "train.balance_weight",
    "train.bias_update",
    "train.dpo_beta",
    "train.dpo_form",
    "train.dpo_nll",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "lora.use_dora",
    "lora.use_rslora",
    "lora.base",
    "rollout.samples",
    "rollout.max_tokens",
    "rollout.temperature",
    "rollout.minibatches",
    "rollout.epochs",
    "rollout.rewards.kind",
    "rollout.rewards.weight",
    "rollout.rewards.column",
    "rollout.rewards.pattern",
    "rollout.rewards.timeout",
    "rollout.missing_end",
    "grpo.loss",
    "grpo.beta",
    "grpo.epsilon",
    "grpo.kl_ratio",
    "grpo.scale",
    "ppo.kl",
    "ppo.kl_target",
    "ppo.kl_horizon",
    "ppo.gamma",
    "ppo.lam",
    "ppo.clip",
    "ppo.value_clip",
    "ppo.value_weight",
    "sampling.samples",
    "sampling.max_tokens",
    "sampling.temperature",
    "sampling.rewards.kind",
    "sampling.rewards.weight",
    "sampling.rewards.column",
    "sampling.rewards.pattern",
    "sampling.rewards.timeout",
    "sampling.least",
    "distill.temperature",
    "distill.weight",
)
"""What the weights of a checkpoint depend on: model, data, objective, optimizer, precision."""

FREE = (
    "name",
    "out",
    "data.ignore",
    "train.steps",
    "train.epochs",
    "train.min_lr",
    "train.decay",
    "train.micro_batch",
    "train.compile",
    "train.deterministic",
    "train.checkpoint_activations",
    "train.eval_every",
    "train.evaluate.tasks",
    "train.evaluate.data",
    "train.evaluate.every",
    "train.evaluate.limit",
    "train.samples",
    "train.save_every",
    "train.keep",
    "train.load_best_model_at_end",
    "train.early_stopping_patience",
    "train.save_in_background",
    "train.track",
    "train.max_skipped",
    "train.device",
    "rollout.eval_prompts",
    "parallel.auto",
    "parallel.data",
    "parallel.shard",
    "parallel.tensor",
    "parallel.pipeline",
    "parallel.context",
    "parallel.expert",
    "parallel.schedule",
    "parallel.stages_per_rank",
    "parallel.last_layers",
    "parallel.zero",
    "parallel.fp8_dispatch",
    "parallel.reshard",
    "parallel.offload",
    "parallel.timeout",
)
"""How long a run goes on, how its schedule ends, where it runs, and what it writes."""

MODEL_KEYS = (
    "model.init_from",
    "tokenizer.path",
    "rollout.rewards.model",
    "sampling.teacher",
    "sampling.rewards.model",
    "distill.teacher",
)
"""Models and tokenizers: a folder, a GGUF file, a published model's name or an id of the Hub."""


BY_CONTENT = ("train.precision", *MODEL_KEYS, "data.sources", "data.corpora")
"""Precision, and names of what a run reads: they may change where what they stand for does not."""


CONTENTS = ("tokenizer", "data", *BY_CONTENT)
"""What is compared by its content, by the name under which it may be allowed to change."""


def check_allowed(names: Sequence[str]) -> None:
    """UserError for a name that is neither a key nor a section."""
    keys = list(leaf_keys())
    known = {key[:end] for key in keys for end, letter in enumerate(f"{key}.") if letter == "."}
    for name in names:
        if name not in known:
            raise unknown_name("--allow-change", name, sorted(known))


def leaf_keys(kind: type[BaseModel] = Recipe, within: str = "") -> Iterator[str]:
    """Every key of a recipe that holds no section, in the schema's order.

    A list of sections counts as one: `rollout.rewards.kind` is of each reward.
    """
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        if inner is None:
            yield within + name
        else:
            yield from leaf_keys(inner, f"{within}{name}.")


def value_at(recipe: dict[str, Any], key: str) -> Any:
    """What a recipe's plain data has at a key, a list where a part of it is one; None for none."""
    found: Any = recipe
    for number, part in enumerate(parts := key.split(".")):
        if isinstance(found, list):
            rest = ".".join(parts[number:])
            return [value_at(one, rest) for one in found]
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's type: itself, or what an optional one or a list is of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [found for part in get_args(annotation) if (found := _section(part)) is not None]
    return inner[0] if inner else None
