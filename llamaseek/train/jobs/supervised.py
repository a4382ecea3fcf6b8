"""From a post-training recipe to a job: rows, objective and sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from llamaseek.checkpoints.hf import load_model
from llamaseek.data.bad_rows import BadRows, NoRows, Row
from llamaseek.data.batch import Batch
from llamaseek.data.builtin.rows import generated_rows
from llamaseek.data.columns import label_of
from llamaseek.data.formats import RowReader
from llamaseek.data.rankings import preferences, scored_answers
from llamaseek.data.ratings import PAIRED, NoPairs, pairs_of_ratings, scaled_ratings
from llamaseek.data.row_sources import file_rows
from llamaseek.data.rows import conversations
from llamaseek.data.source import Rows
from llamaseek.errors import UserError
from llamaseek.models import CausalLM
from llamaseek.models.loss import sum_by_sequence, target_log_probs
from llamaseek.models.score import reward_model
from llamaseek.parallel.collectives import split_over_ranks
from llamaseek.recipe.schema import Recipe
from llamaseek.runtime.device import autocast, pick_device
from llamaseek.text.tokenizer import Tokenizer
from llamaseek.train.examine import HeldOutPairs, answers_here, held_out_answers
from llamaseek.train.job import Job
from llamaseek.train.objectives import Objective
from llamaseek.train.objectives.choose import make_objective
from llamaseek.train.objectives.distill import Distill
from llamaseek.train.objectives.rated import Rated
from llamaseek.train.objectives.reward import BradleyTerry
from llamaseek.train.rollouts.answers import AnswerSampler, Prompt
from llamaseek.train.rollouts.rollout import HeldOutRewards
from llamaseek.train.rollouts.sampled_rows import RowSampler
from llamaseek.train.start import check_speaks, start_from

HELD_OUT = 200  # rows of each generator that evaluations use
Pack = Callable[[Iterable[Row], RowReader, BadRows], Batch]


PACKERS: dict[str, Callable[..., Batch]] = {
    "sft": conversations,
    "reward": scored_answers,
    "dpo": preferences,
}
"""By stage, what makes a batch of rows; the other stages read text or prompts."""


def packer(recipe: Recipe, tokenizer: Tokenizer) -> Pack:
    """How the rows of a recipe's stage become a batch."""
    pack, form = PACKERS[recipe.stage], recipe.train.dpo_form
    further = {"form": form} if recipe.stage == "dpo" else {}

    def packed(rows: Iterable[Row], reader: RowReader, bad: BadRows) -> Batch:
        return pack(rows, tokenizer, recipe.data.length, reader=reader, bad=bad, **further)

    return packed


def sft_job(recipe: Recipe) -> Job:
    """Fine-tuning on conversations, from files, generators, or sampled from a model."""
    tokenizer, model = start_from(recipe)
    pack_rows = packer(recipe, tokenizer)
    sampling = RowSampler(recipe, recipe.sampling, model, tokenizer) if recipe.sampling else None
    asked: list[Prompt] = []

    def pack(rows: Iterable[Row], reader: RowReader, bad: BadRows) -> Batch:
        if sampling is not None:
            prompts = sampling.prompts(rows, reader, bad)
            asked[:] = prompts  # the held-out ones come last
            rows, reader = sampling.rows(prompts, f"rows {len(sampling.kept)}"), RowReader()
        return pack_rows(rows, reader, bad)

    train, held_out, bad, tested = read_data(recipe, pack)
    objective = sft_objective(recipe, model, tokenizer)
    job = Job(recipe, model, tokenizer, objective, Rows(train, recipe.seed), held_out, bad_rows=bad)
    if sampling is None:
        job.examine = held_out_answers(recipe, model, tokenizer, tested)
    if sampling is not None:
        job.sampled, job.samples = sampling.figures(), sampling.kept
        if sampling.rewards and held_out is not None:
            own = AnswerSampler(model, tokenizer, sampling.plan.max_tokens, recipe.seed)
            job.eval_fn = HeldOutRewards(own, asked, sampling.rewards)
    return job


def sft_objective(recipe: Recipe, model: CausalLM, tokenizer: Tokenizer) -> Objective:
    """Cross-entropy, or distillation where the recipe has a teacher."""
    if recipe.distill is None:
        return make_objective(recipe, model, tokenizer)
    check_speaks("distill.teacher", recipe.distill.teacher)
    teacher = load_model(recipe.distill.teacher)
    if teacher.config.vocab_size != model.config.vocab_size:
        sizes = f"{teacher.config.vocab_size} ids, the student {model.config.vocab_size}"
        raise UserError(f"distill.teacher: {recipe.distill.teacher} has {sizes}")
    return Distill(teacher, recipe.distill, recipe.train.balance_weight)


def dpo_job(recipe: Recipe) -> Job:
    """Preference optimization; the model as it is now is its own reference."""
    tokenizer, model = start_from(recipe)
    train, held_out, bad, tested = read_data(recipe, packer(recipe, tokenizer))
    objective = make_objective(recipe, model, tokenizer)
    train = with_reference(recipe, model, train)
    held_out = with_reference(recipe, model, held_out) if held_out is not None else None
    rows = Rows(train, recipe.seed)
    job = Job(recipe, model, tokenizer, objective, rows, held_out, bad_rows=bad)
    if held_out is not None and tested and recipe.train.samples and answers_here(recipe):
        job.examine = HeldOutPairs(recipe, tokenizer, held_out)
    return job


def reward_job(recipe: Recipe) -> Job:
    """A reward model, from a pre-trained or an instruct model."""
    tokenizer, model = start_from(recipe)
    torch.manual_seed(recipe.seed)
    scorer = reward_model(model)
    train, held_out, bad, _ = read_data(recipe, packer(recipe, tokenizer))
    kind = Rated if "rating" in train.extra else BradleyTerry
    objective = kind(recipe.train.balance_weight)
    rows = Rows(train, recipe.seed)
    return Job(recipe, scorer, tokenizer, objective, rows, held_out, bad_rows=bad)


class RowsRead(NamedTuple):
    """Packed rows to train on and to test on, what was skipped, and the held-out rows."""

    train: Batch
    held_out: Batch | None
    bad: BadRows
    tested: list[Row]


def read_data(recipe: Recipe, pack: Pack) -> RowsRead:
    """The rows of files or of the generators."""
    data = recipe.data
    reader, bad = RowReader.of(data), BadRows.of(data)
    if data.sources:
        train, held_out = split_rows(recipe, bad)
        if bad.notes and "chosen" in train[0][1]:  # pairs were made of columns that no pair has
            reader = RowReader.of(data, [data.columns.get(name, name) for name in PAIRED])
        packed = pack(train, reader, bad)
        tested = _packed_if_any(pack, held_out, reader, bad)
        bad.notes += reader.notes()
        return RowsRead(packed, tested, bad, held_out)
    packed = pack(training_part(recipe), reader, bad)
    apart = list(generated_rows(dict.fromkeys(data.rows, HELD_OUT), recipe.seed, "test"))
    return RowsRead(packed, pack(apart, reader, bad), bad, apart)


def training_part(recipe: Recipe) -> Iterable[Row]:
    """The rows that are trained on, of files or generators."""
    data = recipe.data
    if data.sources:
        return split_rows(recipe)[0]
    if not data.rows:
        raise UserError("data.sources: is empty; give files of rows, or generators in data.rows")
    return generated_rows(data.rows, recipe.seed, "train")


def _packed_if_any(pack: Pack, rows: list[Row], reader: RowReader, bad: BadRows) -> Batch | None:
    """Held-out rows; none where there are none, or all of them were skipped."""
    try:
        return pack(rows, reader, bad) if rows else None
    except NoRows:
        return None


def split_rows(recipe: Recipe, bad: BadRows | None = None) -> tuple[list[Row], list[Row]]:
    """The last `data.holdout` of the files' rows apart, of shuffled labelled rows as many of each
    label; at least one is trained on.

    For a stage of pairs, rated answers are made pairs, and `bad.notes` gets a line that says so.
    """
    data, bad = recipe.data, bad or BadRows.of(recipe.data)
    rows = list(file_rows(data.sources, data.encoding))
    if recipe.stage in ("dpo", "reward"):
        rows, said = compared(rows, recipe, bad)
        bad.notes.extend(said)
    if data.shuffle:
        Random(recipe.seed).shuffle(rows)
    kinds = [""] * len(rows)
    if data.shuffle and data.format == "labels":
        kinds = [str(label_of(*row, data.columns)) for row in rows]
    return held_apart(rows, kinds, min(int(len(rows) * data.holdout), len(rows) - 1))


def compared(rows: list[Row], recipe: Recipe, bad: BadRows) -> tuple[list[Row], list[str]]:
    """Rated answers as pairs, or for a reward model as they are where none can be compared."""
    try:
        return pairs_of_ratings(rows, recipe.data.columns, bad)
    except NoPairs:
        if recipe.stage != "reward":
            raise
        return scaled_ratings(rows, recipe.data.columns)


def held_apart(rows: list[Row], kinds: Sequence[str], number: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and `number` to test on, the last ones of each kind by its share of all."""
    left = Counter(kinds)
    shares = {kind: count * number / len(rows) for kind, count in left.items()}
    held = {kind: int(share) for kind, share in shares.items()}
    missing = number - sum(held.values())
    for kind in sorted(held, key=lambda kind: held[kind] - shares[kind])[:missing]:
        held[kind] += 1
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row, kind in zip(rows, kinds, strict=True):
        left[kind] -= 1
        parts[left[kind] < held[kind]].append(row)
    return parts


@torch.no_grad()
def with_reference(recipe: Recipe, model: CausalLM, batch: Batch) -> Batch:
    """The batch with the answers' log-probabilities under the model as it is now, of which each
    rank computes its share.
    """
    device = pick_device(recipe.train.device)
    model.to(device).eval()

    def summed(parts: Sequence[Batch]) -> list[Tensor]:
        own = (part.to(device) for part in parts)
        with autocast(recipe.train, device):
            return [sum_by_sequence(target_log_probs(model, part), part).cpu() for part in own]

    sums = split_over_ranks(list(batch.split(recipe.train.batch)), summed)
    return replace(batch, extra={**batch.extra, "reference": torch.cat(sums)})
