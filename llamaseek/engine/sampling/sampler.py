"""From logits to tokens: penalties, distributions, draws, log-probabilities.

Draws are the inverse of the cumulative distribution at a number that depends only on a request's
seed and the token's place, so an answer is the same alone, batched, preempted or resumed.

R rows (one a token to draw), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llamaseek.engine.forward.step_layout import StepResult, sent, some_rows
from llamaseek.engine.request import SamplingParams, SequenceState
from llamaseek.engine.sampling.state import DRAWS, SamplingState, numbers_of

FEW = 256  # candidates looked at before a whole row is sorted
DRAWN, ACCEPTED, DRAFTED = range(3)  # what a random number is for
NO_TOKEN = -1  # of a row whose logits are no numbers


def uniforms(seeds: Sequence[int], places: Sequence[int], purpose: int) -> NDArray[np.float32]:
    """A number in [0, 1) for each seed and place, float32 of shape (R).

    splitmix64's finalizer (Steele et al. 2014) over the seed, then over the place.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(np.asarray(seeds, np.uint64) + np.uint64(purpose) * _GOLDEN)
        mixed = _mix(mixed + np.asarray(places, np.uint64) * _GOLDEN)
    return ((mixed >> np.uint64(40)) / np.float64(1 << 24)).astype(np.float32)


def derive_seed(seed: int, index: int) -> int:
    """The seed of a request's answer number `index`; the first keeps the request's."""
    if not index:
        return seed
    with np.errstate(over="ignore"):
        return int(_mix(np.asarray([seed], np.uint64) ^ _mix(np.asarray([index], np.uint64)))[0])


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shape_logits(
    logits: Tensor, answers: Sequence[SequenceState], state: SamplingState | None = None
) -> Tensor:
    """Logits (R, V) after penalties, bias and grammar; see `decide` for whose rows they are.

    What goes wrong for one answer (a grammar that fails) ends that answer alone.
    """
    logits = logits.clone()
    sizes = [1 + len(answer.drafts) for answer in answers]
    first = (np.cumsum(sizes) - sizes).tolist()
    if state is not None:
        state.shape(logits, answers, first)
    for answer, start in zip(answers, first, strict=True):
        if answer.params.shaped:  # such answers have no drafts
            try:
                _shape_row(logits[start], answer, apart=state is None)
            except Exception as error:
                answer.error = error
    return logits


def _shape_row(row: Tensor, answer: SequenceState, apart: bool) -> None:
    """Change logits (V) in place; by the grammar alone where answers are not shaped `apart`."""
    if apart:
        penalize(row, answer.tokens, answer.prompt_length, answer.params)
        for token, bias in answer.params.logit_bias.items():
            row[token] += bias
    if answer.matcher is not None:
        answer.matcher.mask(row)


def penalize(row: Tensor, tokens: Sequence[int], prompt: int, params: SamplingParams) -> None:
    """Change logits (V) in place by what was said; the first `prompt` tokens were given."""
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(tokens)), device=row.device)
        scores = row[seen]
        factor = params.repetition_penalty
        row[seen] = torch.where(scores < 0, scores * factor, scores / factor)
    if (params.presence_penalty or params.frequency_penalty) and len(tokens) > prompt:
        seen_ids, counts = np.unique(np.asarray(tokens[prompt:], np.int64), return_counts=True)
        penalty = torch.from_numpy(counts * params.frequency_penalty + params.presence_penalty)
        row[torch.from_numpy(seen_ids).to(row.device)] -= penalty.to(row)


def distributions(
    logits: Tensor, params: Sequence[SamplingParams], numbers: Tensor | None = None
) -> Tensor:
    """Logits (R, V) → the probabilities (R, V) that tokens are drawn with, float32.

    Temperature, then top_k, then top_p over what that leaves, then min_p. Tokens as likely as
    the last one kept are kept. `numbers` are those of the params, where they are there already.
    """
    logits = logits.float()
    numbers = numbers_of(params, logits.device) if numbers is None else numbers
    logits = (logits - logits.amax(-1, keepdim=True)) / numbers[:, :1]
    probabilities = logits.softmax(-1)
    if any(p.top_k or p.top_p < 1 or p.min_p for p in params):
        least = _least_kept(probabilities, params, numbers)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def _looks(params: Sequence[SamplingParams], vocabulary: int, host: bool) -> tuple[int, ...]:
    """Among how many candidates the last one kept is looked for, and then if it is not there. On a
    GPU among all at once, unless params say that few are kept: asking would take longer.
    """
    few = min(FEW, vocabulary)
    if host:
        return few, vocabulary
    near = all(0 < p.top_k <= few or (not p.top_k and p.top_p == 1) for p in params)
    return (few,) if near else (vocabulary,)


def _least_kept(probabilities: Tensor, params: Sequence[SamplingParams], numbers: Tensor) -> Tensor:
    """The smallest probability that each row keeps (R, 1)."""
    vocabulary = probabilities.shape[-1]
    _, top_k, top_p, min_p = numbers[:, :DRAWS].split(1, dim=-1)
    least = probabilities.amax(-1, keepdim=True) * min_p
    top_k = top_k.clamp(max=vocabulary)
    all_k, all_p = top_k == vocabulary, top_p == 1
    looks = _looks(params, vocabulary, probabilities.device.type == "cpu")
    for look in looks:
        ranked = probabilities.topk(look, dim=-1).values
        places = torch.arange(look, device=probabilities.device)
        ranked = ranked.masked_fill(places >= top_k, 0)
        reached = ranked.cumsum(-1)
        if look == looks[-1]:
            break
        in_sight = (top_k <= look) | (all_k & (all_p | (reached[:, -1:] > top_p)))
        if bool(in_sight.all()):
            break
    # top_p is a share of the mass that top_k leaves; a top_p of 1 must not lose what rounds away.
    mass = torch.where(all_k, torch.ones_like(top_p), reached[:, -1:])
    wanted = torch.where(all_p, torch.full_like(top_p, torch.inf), top_p * mass)
    kept = (reached - ranked < wanted) & (places < top_k)
    last = (kept.sum(-1, keepdim=True) - 1).clamp(min=0)  # the likeliest, however small top_p
    return least.maximum(ranked.gather(1, last).masked_fill(all_k & all_p, 0))


def draw(probabilities: Tensor, numbers: NDArray[np.float32]) -> Tensor:
    """Probabilities (R, V), rows of any sum above 0, and a number in [0, 1) each → ids (R)."""
    reached = probabilities.cumsum(-1)
    total = reached[:, -1:]
    wanted = torch.from_numpy(numbers).to(total.device, non_blocking=True)[:, None] * total
    wanted = wanted.minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(reached, wanted, right=True).squeeze(1)


def decide(
    made: StepResult, answers: Sequence[SequenceState], state: SamplingState | None = None
) -> list[list[int]]:
    """What each answer says next: the drafts that stand, then one token of its own.

    The logits (R, V) have, answer after answer, a row for its last token and one for each draft. A
    greedy answer keeps drafts while they are the likeliest token. A drawn one keeps them by
    rejection sampling, so that its distribution is the model's (Leviathan et al. 2023 §2.3).
    An answer whose logits are no numbers gets an error.
    """
    logits, best, most = made.logits, made.best, made.most
    if state is not None and len(logits) == len(answers):
        return read(next_tokens(logits, answers, state).tolist(), answers)
    if any(answer.params.shaped for answer in answers):
        logits, best = shape_logits(logits.float(), answers, state), None
    if best is None or most is None:
        best, most = likeliest(logits)
    if any(map(isnan, most)):
        _fail_unsound(most, answers)
    if len(best) == len(answers) and all(answer.params.greedy for answer in answers):
        return [[token] for token in best]
    says: list[list[int]] = []
    drawn, first, start = [], [], 0
    for place, answer in enumerate(answers):
        kept = 0
        if answer.params.greedy:
            while kept < len(answer.drafts) and answer.drafts[kept] == best[start + kept]:
                kept += 1
        else:
            drawn.append(place)
            first.append(start)
        says.append([*answer.drafts[:kept], best[start + kept]])
        start += 1 + len(answer.drafts)
    if drawn:
        found = _draw_or_keep(logits, [answers[place] for place in drawn], first)
        for place, seen_ids in zip(drawn, found, strict=True):
            says[place] = seen_ids
    return says


def next_tokens(
    logits: Tensor,
    answers: Sequence[SequenceState],
    state: SamplingState,
    ahead: int = 0,
) -> Tensor:
    """The next token of answers without drafts, NO_TOKEN where logits are no numbers: logits (R, V)
    → (R). The host waits for nothing; it may not know the latest `ahead` tokens yet.
    """
    if any(answer.params.shaped for answer in answers):
        logits = shape_logits(logits.float(), answers, state)
    most, found = logits.max(-1)
    drawn = [place for place, answer in enumerate(answers) if not answer.params.greedy]
    if drawn:
        some = [answers[place] for place in drawn]
        params, numbers = [answer.params for answer in some], state.numbers_for(some)
        chances = distributions(some_rows(logits, drawn), params, numbers)
        at = uniforms([a.seed for a in some], [len(a.tokens) + ahead for a in some], DRAWN)
        rows = sent(np.array(drawn, np.int64), logits.device)
        found = found.index_copy(0, rows, draw(chances, at))
    found = found.masked_fill(most.isnan(), NO_TOKEN)
    state.add(answers, found)
    return found


def read(tokens: list[int], answers: Sequence[SequenceState]) -> list[list[int]]:
    """What answers without drafts say; those that `next_tokens` has no token for get an error."""
    _fail_unsound([nan if token == NO_TOKEN else 0.0 for token in tokens], answers)
    return [[token] for token in tokens]


def likeliest(logits: Tensor) -> tuple[list[int], list[float]]:
    """The token with the largest of each row of logits (R, V), the first of equals, and that one.

    NaN is larger than all.
    """
    if logits.is_cpu and logits.dtype == torch.float32:  # NumPy takes a tenth of PyTorch's time
        rows = logits.numpy()
        best = rows.argmax(-1)
        return best.tolist(), rows[np.arange(len(rows)), best].tolist()
    most, highest = logits.max(-1)
    return highest.tolist(), most.tolist()


def _fail_unsound(most: Sequence[float], answers: Sequence[SequenceState]) -> None:
    """End answers whose logits are no numbers; `most` (R) is the largest of each row.

    What is drawn from such a row may be no token at all, and would break its neighbors' step.
    """
    start = 0
    for answer in answers:
        end = start + 1 + len(answer.drafts)
        if any(map(isnan, most[start:end])):
            answer.error = ArithmeticError("the model's logits are no numbers")
        start = end


def _draw_or_keep(
    logits: Tensor, answers: Sequence[SequenceState], first: list[int]
) -> list[list[int]]:
    """`decide` for answers that are drawn, each with its first row in `logits`."""
    sizes = [1 + len(answer.drafts) for answer in answers]
    rows = [at + ahead for at, size in zip(first, sizes, strict=True) for ahead in range(size)]
    params = [a.params for a, size in zip(answers, sizes, strict=True) for _ in range(size)]
    chances = distributions(logits[rows], params)
    starts = (np.cumsum(sizes) - sizes).tolist()
    kept = _kept_drafts(chances, answers, starts)
    last = chances[[start + count for start, count in zip(starts, kept, strict=True)]]
    fallen = [row for row, answer in enumerate(answers) if kept[row] < len(answer.drafts)]
    if fallen:
        fell = [answers[row].drafts[kept[row]] for row in fallen]
        given = [answers[row].draft_probs[kept[row] :] for row in fallen]
        last[fallen] = _without(last[fallen], fell, [q[0] for q in given if q])
    places = [len(answer.tokens) + count for answer, count in zip(answers, kept, strict=True)]
    numbers = uniforms([answer.seed for answer in answers], places, DRAWN)
    own = draw(last, numbers).tolist()
    return [[*a.drafts[:k], token] for a, k, token in zip(answers, kept, own, strict=True)]


def _kept_drafts(chances: Tensor, answers: Sequence[SequenceState], starts: list[int]) -> list[int]:
    """How many drafts of each answer stand: draft x with probability min(1, p(x) / q(x)).

    A draft that was not drawn has q = 1.
    """
    drafts = [token for answer in answers for token in answer.drafts]
    if not drafts:
        return [0] * len(answers)
    spots = [(a, ahead) for a, answer in enumerate(answers) for ahead in range(len(answer.drafts))]
    p = chances[[starts[a] + ahead for a, ahead in spots], drafts]
    q = [probs for answer in answers for probs in answer.draft_probs]
    seeds = [answers[a].seed for a, _ in spots]
    places = [len(answers[a].tokens) + ahead for a, ahead in spots]
    numbers = torch.from_numpy(uniforms(seeds, places, ACCEPTED)).to(p.device)
    if q:
        numbers = numbers * torch.stack(q)[range(len(q)), drafts]
    stands = iter((numbers < p).tolist())
    mine = ([next(stands) for _ in answer.drafts] for answer in answers)
    return [one.index(False) if False in one else len(one) for one in mine]


def _without(chances: Tensor, fell: list[int], given: list[Tensor]) -> Tensor:
    """What to draw from where a draft fell: what the model gives more, max(p - q, 0).

    Chances p (R, V), the drafts (R) and the q (V) each they were drawn from; none if they were not
    drawn, which is all of q on the draft. Where p and q differ by rounding alone, p.
    """
    if given:
        rest = (chances - torch.stack(given)).clamp(min=0)
    else:
        rest = chances.scatter(1, torch.tensor(fell, device=chances.device)[:, None], 0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, chances)
