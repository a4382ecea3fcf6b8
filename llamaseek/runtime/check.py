"""Layouts that cannot run, refused when the recipe is read: no torch, no process group yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from llamaseek.errors import UserError
from llamaseek.herd import ModelConfig, config_from_sizes, find_family
from llamaseek.herd.folder import read_config
from llamaseek.herd.formats import BLOCK, PACKED
from llamaseek.plan.layout import DEGREES, Layout
from llamaseek.recipe.parallel import ParallelRecipe
from llamaseek.recipe.schema import Recipe
from llamaseek.recipe.stages import STAGES
from llamaseek.runtime.auto import choose
from llamaseek.runtime.world import started_ranks

TORCHAO = ("tensorwise", "rowwise")


def float8_problems(recipe: Recipe, config: ModelConfig) -> Iterator[str]:
    """What keeps a recipe's fp8 products from running, one line each."""
    kind, train = recipe.train.float8, recipe.train
    if kind == "none":
        return
    subject = f"train.float8: {kind}"
    if kind in TORCHAO and train.device == "cpu":
        yield f"{subject} needs a GPU; allowed on a CPU: none, and deepseek, which is emulated"
    if train.precision == "fp64" or kind in TORCHAO and train.precision == "fp32":
        yield f"{subject} is not for train.precision {train.precision}; allowed: auto, bf16"
    if recipe.lora is not None:
        yield f"{subject} is not for adapters, whose base is not trained; allowed: none"
    if STAGES[recipe.stage].rollouts:
        yield f"{subject} is not for {recipe.stage}, whose engine reads plain weights; use none"
    if recipe.parallel.tensor > 1:
        yield (
            f"parallel.tensor: {recipe.parallel.tensor} is not for train.float8, whose scales "
            "belong to whole matrices; allowed: data, shard, pipeline, context, expert"
        )
    yield from _widths(subject, config) if kind == "deepseek" else ()


def _widths(subject: str, config: ModelConfig) -> Iterator[str]:
    """Widths that blocks do not divide: narrow latents are padded, these would cost too much."""
    widths = {"hidden_size": config.hidden_size} | config.inner_widths()
    for name, width in widths.items():
        if width % BLOCK:
            yield f"{subject} needs a multiple of {BLOCK} as model.config.{name}, not {width}"


def resolve(recipe: Recipe, ranks: int | None) -> Recipe:
    """The recipe with a layout that can run on `ranks` (None: not known yet).

    Chooses it where the recipe says `auto`; `UserError` for the first thing that cannot be.
    """
    find_family(recipe.model.family)
    alone = recipe.parallel == ParallelRecipe() and ranks in (None, 1)
    if alone and recipe.train.float8 == "none":
        return recipe
    config = model_config(recipe)
    if recipe.parallel.auto:

        def runs(plan: ParallelRecipe) -> bool:
            tried = recipe.model_copy(update={"parallel": plan})
            return next(problems(tried, config, ranks), None) is None

        chosen = choose(recipe, config, ranks or 1, runs)
        recipe = recipe.model_copy(update={"parallel": chosen})
    for problem in problems(recipe, config, ranks):
        raise UserError(problem)
    return recipe


def check_started(recipe: Recipe, wanted: str) -> None:
    """UserError where one process was started for a recipe, `wanted` by its user, of several."""
    ranks = recipe.parallel.ranks
    if ranks > 1 and started_ranks() is None:
        raise UserError(
            f"parallel: is for {ranks} ranks, but one process was started; allowed: "
            f"torchrun --nproc-per-node {ranks} -m llamaseek {recipe.stage} {wanted}"
        )


def model_config(recipe: Recipe) -> ModelConfig:
    """The config of the model that the recipe trains."""
    if recipe.model.init_from:
        return read_config(Path(recipe.model.init_from))
    sizes = dict(recipe.model.config)
    # A tokenizer folder's ids are counted when it is read; until then any number that divides.
    known = recipe.tokenizer.vocab_size if recipe.tokenizer.path is None else 2**20
    sizes.setdefault("vocab_size", known)
    return config_from_sizes(recipe.model.family, sizes)


def problems(recipe: Recipe, config: ModelConfig, ranks: int | None) -> Iterator[str]:
    """What keeps this recipe from running, one line each, the plainest first."""
    plan = recipe.parallel
    layout = Layout(**{name: getattr(plan, name) for name in DEGREES})
    if layout.gpus != (ranks or layout.gpus):
        parts = " × ".join(f"{n} {getattr(plan, n)}" for n in DEGREES[:-1] if getattr(plan, n) > 1)
        yield (
            f"parallel: {parts or 'one rank'} makes {layout.gpus} ranks, but {ranks} were started; "
            f"allowed: torchrun --nproc-per-node {layout.gpus}"
        )
    yield from _sizes(config, plan)
    yield from _rows(recipe, plan, layout)
    yield from _experts(config, plan, layout)
    yield from _combinations(recipe, plan)
    yield from float8_problems(recipe, config)


def _divides(field: str, degree: int, what: str, size: int) -> Iterator[str]:
    if size % degree:
        yield f"{field}: {degree} does not divide {what} ({size})"


def answering_problems(config: ModelConfig, stored: Iterable[str], ranks: int) -> Iterator[str]:
    """What keeps a folder of `stored` tensors from being answered with on several ranks."""
    subject = f"torchrun: {ranks} ranks"
    if config.is_reward_model:
        yield f"{subject} are not for a reward model: it scores and cannot generate text"
    if any(name.endswith(PACKED) for name in stored):
        yield f"{subject} are not for weights packed in 4 or 8 bits; allowed: 1"
    yield from tensor_problems(config, ranks, subject)


def tensor_problems(config: ModelConfig, degree: int, field: str) -> Iterator[str]:
    """Heads and widths that a degree of tensor parallel does not divide."""
    for what, size in config.tensor_parallel_sizes().items():
        yield from _divides(field, degree, what, size)


def _sizes(config: ModelConfig, plan: ParallelRecipe) -> Iterator[str]:
    yield from tensor_problems(config, plan.tensor, "parallel.tensor")
    layers = config.num_hidden_layers
    if plan.stages > layers + 2:  # the first may hold the embedding alone, the last the head
        yield (
            f"parallel.pipeline: {plan.stages} stages are more than the model's {layers} layers, "
            "embedding and head"
        )
    ahead = config.multi_token_depth
    if plan.last_layers is not None:
        if plan.pipeline == 1 or not ahead <= plan.last_layers <= layers:
            yield (
                f"parallel.last_layers: {plan.last_layers} is for parallel.pipeline above 1, and "
                f"from {ahead} to {layers}"
            )
    elif plan.pipeline > 1 and ahead > (layers + ahead) // plan.stages:
        yield (
            f"parallel.pipeline: the {ahead} multi-token modules do not fit the last of "
            f"{plan.stages} stages; allowed: fewer stages"
        )


def _rows(recipe: Recipe, plan: ParallelRecipe, layout: Layout) -> Iterator[str]:
    batch, micro = recipe.train.batch, recipe.train.micro_batch
    yield from _divides("parallel: data × shard of", layout.replicas, "train.batch", batch)
    each = batch // layout.replicas
    if plan.pipeline > 1:
        rows = micro or 1
        yield from _divides("train.micro_batch", rows, "a rank's rows", each)
        if each // rows < plan.pipeline:
            yield (
                f"parallel.pipeline: {plan.pipeline} stages need as many micro-batches, a rank has "
                f"{each // rows}; allowed: a larger train.batch or a smaller train.micro_batch"
            )
        if plan.stages > plan.pipeline and each // rows % plan.pipeline:
            yield f"parallel.schedule: {plan.schedule} needs a multiple of {plan.pipeline} " + (
                f"micro-batches, a rank has {each // rows}"
            )
    slices = plan.tensor * (2 * plan.context if plan.context > 1 else 1)
    where = "parallel: tensor × 2 context of" if plan.context > 1 else "parallel.tensor"
    yield from _divides(where, slices, "data.length", recipe.data.length)


def _experts(config: ModelConfig, plan: ParallelRecipe, layout: Layout) -> Iterator[str]:
    if plan.fp8_dispatch and (plan.expert == 1 or config.hidden_size % 128):
        yield (
            "parallel.fp8_dispatch: true needs parallel.expert above 1 and a hidden_size that 128 "
            f"divides, these are {plan.expert} and {config.hidden_size}"
        )
    if plan.expert == 1:
        return
    if not config.num_experts:
        yield f"parallel.expert: {plan.expert} needs a model with experts; allowed: 1"
        return
    yield from _divides("parallel.expert", plan.expert, "the experts", config.num_experts)
    yield from _divides("parallel.expert", plan.expert, "data × shard", layout.replicas)
    if plan.expert % plan.shard:
        yield f"parallel.expert: {plan.expert} is not a multiple of parallel.shard ({plan.shard})"


def _combinations(recipe: Recipe, plan: ParallelRecipe) -> Iterator[str]:
    """What no layout does, each with its reason."""
    splits = [name for name in DEGREES if name != "data" and getattr(plan, name) > 1]
    if plan.zero and plan.shard > 1:
        yield "parallel.zero: true is not for shard above 1, which spreads the moments already"
    if plan.zero and plan.data == 1:
        yield "parallel.zero: true needs parallel.data above 1: moments are spread over data ranks"
    if plan.offload and plan.shard == 1:
        yield "parallel.offload: true needs parallel.shard above 1: only sharded weights move"
    cut = [name for name in ("shard", "tensor") if name in splits]
    if recipe.train.optimizer == "muon" and cut:
        yield (
            f"parallel.{cut[0]}: above 1 is not for train.optimizer muon, whose updates need whole "
            "matrices; allowed: data, zero, pipeline, context, expert"
        )
    beyond = [name for name in splits if name != "shard"]
    if beyond and recipe.samples:
        what = "sampling" if recipe.sampling is not None else recipe.stage
        yield (
            f"parallel.{beyond[0]}: above 1 is not for {what}, whose engine answers from whole "
            "weights; allowed: data, shard"
        )
    across = [name for name in ("tensor", "context") if name in splits]
    if recipe.distill is not None and across:
        yield (
            f"parallel.{across[0]}: above 1 is not for distillation, whose teacher is whole on "
            "each rank; allowed: data, shard, pipeline, expert"
        )
    if recipe.lora is not None and beyond:
        yield (
            f"parallel.{beyond[0]}: above 1 is not for adapters, which are added to whole "
            "matrices; allowed: data, shard"
        )
    if recipe.lora is not None and recipe.lora.use_dora and plan.ranks > 1:
        yield "lora.use_dora: true is for one process; allowed: false, or parallel degrees of 1"
    if recipe.lora is not None and recipe.lora.base == "nf4" and plan.shard > 1:
        yield (
            "parallel.shard: above 1 is not for lora.base nf4, whose 4 bits are whole on "
            "each rank; allowed: data"
        )


def by_layer(recipe: Recipe) -> bool:
    """Whether no step before training needs the whole model: nothing is sampled from it, it is no
    one's reference, and stays in the precision it comes in.
    """
    whole = recipe.stage == "dpo" or recipe.samples
    narrow = recipe.lora is not None and recipe.lora.base == "nf4"
    return recipe.parallel.ranks > 1 and not whole and not narrow
