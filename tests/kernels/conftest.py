"""Triton's interpreter, made to multiply bf16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def products_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as 16-bit whole numbers, and multiplies those; here it widens."""
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(part: Any) -> Any:
        if part.dtype.scalar != interpreter.tl.bfloat16:
            return part
        bits = part.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
