"""How the product of a few tokens and a weight in fewer bits is spread over a GPU.

A program makes OUTPUTS of the outputs for all tokens from a part of the inputs; the parts' results
are added up afterwards, always in the same order. Into how many parts the inputs are cut does not
depend on the tokens, so that a token's sums are made of the same parts in every batch.

M tokens, K inputs, N outputs, P parts.
"""

from __future__ import annotations

import triton

OUTPUTS = 32  # of a program
NARROWEST = 16  # rows that a matrix unit takes
PROGRAMS = 528  # four for each of an H100's 132 multiprocessors, so that enough bytes are under way
STEPS = 2  # of the inputs that a program takes at least
STAGES = 4  # steps of the weight under way in each


def parts(inputs: int, outputs: int, step: int) -> tuple[int, int]:
    """P, and how many inputs, a multiple of `step`, each of them takes."""
    steps = triton.cdiv(inputs, step)
    wanted = triton.cdiv(PROGRAMS, triton.cdiv(outputs, OUTPUTS))
    each = triton.cdiv(steps, max(1, min(wanted, steps // STEPS)))
    return triton.cdiv(steps, each), each * step


def rows(tokens: int) -> int:
    """Rows that a matrix unit computes for M tokens."""
    return max(triton.next_power_of_2(tokens), NARROWEST)
