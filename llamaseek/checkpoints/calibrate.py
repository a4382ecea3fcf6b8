"""A model's matrices rounded by GPTQ, a layer at a time, on the inputs that a text gives them.

Each layer sees what the layers before it make of the text once they are rounded. Matrices with the
same input (queries, keys and values; gate and up) are rounded as one. A routed expert is rounded
on the tokens that chose it.

R rows of the text, T tokens of a row, N rows and K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamaseek.data.documents import read_documents
from llamaseek.errors import UserError
from llamaseek.kernels.packed import pack
from llamaseek.models import CausalLM
from llamaseek.models.moe import Experts, Product, grouped_product
from llamaseek.models.quant.gptq import gptq
from llamaseek.text.tokenizer import Tokenizer

ROWS, LENGTH = 32, 512
LONGEST = 16 * ROWS * LENGTH  # characters of a document that are read
AT_ONCE = 4  # rows that go through a layer together

Packed = tuple[Tensor, Tensor]
"""Words int32 (N, W) and bf16 scales (N, G)."""


@dataclass
class Gram:
    """The sum of x xᵀ (K, K) over a matrix's inputs, and the matrices that share it by name."""

    total: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)


class Recorder:
    """Sums up the inputs of a layer's matrices while the layer runs."""

    def __init__(self, prefix: str, layer: nn.Module, wanted: Mapping[str, object]) -> None:
        """`wanted` has the names of the weights to record, which begin with `prefix`."""
        self.grams: dict[str, Gram] = {}
        self._last: tuple[Tensor, str] | None = None
        self._hooks = []
        self._experts: list[Experts] = []
        for name, module in layer.named_modules(prefix=prefix):
            if isinstance(module, nn.Linear) and f"{name}.weight" in wanted:
                self._hooks.append(module.register_forward_pre_hook(self._of_linear(name, module)))
            elif isinstance(module, Experts) and f"{name}.0.gate_proj.weight" in wanted:
                module.product = self._of_experts(name, module)
                self._experts.append(module)

    def close(self) -> None:
        """Leave the layer as it was."""
        for hook in self._hooks:
            hook.remove()
        for experts in self._experts:
            experts.product = grouped_product

    def _add(self, name: str, x: Tensor, weights: dict[str, Tensor]) -> None:
        x = x.flatten(0, -2).float()
        gram = self.grams.setdefault(name, Gram(torch.zeros(x.shape[1], x.shape[1])))
        gram.total += x.T @ x
        gram.weights |= weights

    def _of_linear(self, name: str, module: nn.Linear) -> Callable[[nn.Module, Any], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weight: dict[str, Tensor] = {f"{name}.weight": module.weight}
            if self._last is not None and self._last[0] is inputs[0]:
                self.grams[self._last[1]].weights |= weight
                return
            self._last = inputs[0], name
            self._add(name, inputs[0], weight)

        return record

    def _of_experts(self, name: str, module: Experts) -> Product:
        def record(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
            down = weights is module.down_proj
            for expert, part in enumerate(x.tensor_split(ends[:-1].tolist())):
                own = f"{name}.{expert}."
                if down:
                    parts = {f"{own}down_proj.weight": module.down_proj[expert]}
                else:
                    both = module.gate_up_proj[expert]
                    parts = {
                        f"{own}gate_proj.weight": both[0],
                        f"{own}up_proj.weight": both[1],
                    }
                self._add(f"{own}{down}", part, parts)
            return grouped_product(x, weights, ends)

        return record


def read_rows(text: Path, source: Path) -> Tensor:
    """The text's first `ROWS` rows of `LENGTH` token ids: (R, T).

    UserError for a text that cannot be read or has less than one row.
    """
    tokenizer = Tokenizer.load(source)
    ids: list[int] = []
    for document in read_documents([text]):
        ids += tokenizer.encode(document.text[:LONGEST])
        if len(ids) >= ROWS * LENGTH:
            break
    count = min(len(ids) // LENGTH, ROWS)
    if not count:
        raise UserError(f"{text}: has {len(ids)} tokens; calibration needs {LENGTH} or more")
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


@torch.no_grad()
def calibrated(
    model: CausalLM,
    rows: Tensor,
    plans: Mapping[str, tuple[int, int]],
    products: torch.dtype = torch.float32,
) -> Iterator[tuple[str, Packed]]:
    """Words and scales of every weight in `plans` that lies in a layer, layer by layer.

    `plans` gives bits and group (0: a scale a row) by the weight's name; a matrix that is shared
    with others of its input is rounded with them. The model's own weights become the rounded ones.
    `products` is the dtype that layers multiply in.
    """
    positions = torch.arange(rows.shape[1])[None]
    parts = [model.embed(part) for part in rows.split(AT_ONCE)]
    rotary = model.model.rotary(positions)
    for index in range(model.config.num_hidden_layers):
        layer = model.model.layers[index]
        recorder = Recorder(f"model.layers.{index}", layer, plans)

        def run(x: Tensor, index: int = index) -> Tensor:
            places = positions.expand(len(x), -1)
            with torch.autocast("cpu", products, products != torch.float32):
                return model.run_layer(index, x, rotary, places, None, None).float()

        for part in parts:
            run(part)
        recorder.close()
        for gram in recorder.grams.values():
            yield from _rounded(gram, plans)
        parts = [run(part) for part in parts]


def _rounded(gram: Gram, plans: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Packed]]:
    """Round the weights of one input together, and put the rounded numbers in their place."""
    names = list(gram.weights)
    if not gram.total.isfinite().all():
        raise UserError(f"{names[0]}: its inputs on the calibration text are not finite")
    bits, group = plans[names[0]]
    whole = torch.cat([weight.float() for weight in gram.weights.values()])
    group = group or whole.shape[1]
    codes, scales = gptq(whole, gram.total, bits, group)
    numbers = (codes.unflatten(1, (-1, group)) * scales.float()[..., None]).flatten(1)
    words = pack((codes + 2 ** (bits - 1)).to(torch.uint8), bits)
    first = 0
    for name in names:
        weight = gram.weights[name]
        rows = slice(first, first + len(weight))
        weight.copy_(numbers[rows])
        yield name, (words[rows].clone(), scales[rows].clone())
        first += len(weight)
