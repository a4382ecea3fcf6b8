"""The block diagram of an architecture as SVG, drawn from a config (light and dark)."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from llamaseek.herd.configs import ModelConfig
from llamaseek.herd.panels import Box, Panel, Row


def panels(config: ModelConfig) -> Iterator[Panel]:
    """The trunk, then its attention and feed-forward, then multi-token prediction if it has any."""
    yield _trunk(config)
    yield config.attention_panel()
    yield config.feed_forward_panel()
    yield from config.further_panels()


def _trunk(config: ModelConfig) -> Panel:
    attention = config.attention_panel().title
    tied = "weights shared with the embedding" if config.tie_word_embeddings else "linear"
    rows: tuple[Row, ...] = (
        (Box("tokens", f"up to {config.max_position_embeddings:,}"),),
        (Box("Embedding", f"{config.vocab_size:,} × {config.hidden_size:,}", "linear"),),
        (Box("RMSNorm", kind="norm"),),
        (Box(attention, f"{config.num_attention_heads} heads", "part"),),
        (Box("+"),),
        (Box("RMSNorm", kind="norm"),),
        (config.feed_forward_box(),),
        (Box("+"),),
        (Box("RMSNorm", kind="norm"),),
        (Box("Head", tied, "linear"),),
        (Box("logits", f"{config.vocab_size:,} classes"),),
    )
    width = f"width {config.hidden_size:,}"
    label = f"× {config.num_hidden_layers} layers, {width}"
    return Panel("Model", rows, (2, 7), label, residuals=((2, 4), (5, 7)))


PANEL, GAP, MARGIN = 350, 26, 24  # pixels: a panel's width, between panels, around the drawing
BOX, STEP = 44, 70  # a box's height, from one row to the next
TOP = 96  # room for the titles
SIDE = {True: 40, False: 10}  # room beside the boxes: of a panel with lines around them, or not

STYLE = """
text{font:13px system-ui,sans-serif;fill:#1d2733;text-anchor:middle}
.title{font-size:20px;font-weight:600;text-anchor:start}
.name{font-size:15px;font-weight:600;text-anchor:start}
.detail{font-size:11px;fill:#52606d}
.sheet{fill:#fff}.panel{fill:#f5f7fa;stroke:#cbd2d9}
.loop{fill:none;stroke:#7b8794;stroke-dasharray:5 4}
.line{fill:none;stroke:#52606d;stroke-width:1.4}.tip{fill:#52606d}
rect{rx:7px}
.op{fill:#fff;stroke:#7b8794}.linear{fill:#d6e8fa;stroke:#3a78b5}
.norm{fill:#e3f4e1;stroke:#4d9147}.part{fill:#ece2f7;stroke:#7d55b0}
.cache{fill:#fdebcf;stroke:#c07a16}
@media(prefers-color-scheme:dark){
text{fill:#e4e7eb}.detail{fill:#a3b0bd}.sheet{fill:#14181d}.panel{fill:#1c2229;stroke:#36404a}
.op{fill:#242c35}.linear{fill:#173049}.norm{fill:#1c3a1f}.part{fill:#33244a}.cache{fill:#46300d}
.line{stroke:#a3b0bd}.tip{fill:#a3b0bd}}
"""


def draw(config: ModelConfig, title: str) -> str:
    """An SVG document: the trunk, and beside it what its parts are made of."""
    shown = list(panels(config))
    rows = max(len(panel.rows) for panel in shown)
    width = 2 * MARGIN + len(shown) * PANEL + (len(shown) - 1) * GAP
    height = TOP + rows * STEP + MARGIN
    body = [line for i, panel in enumerate(shown) for line in _panel(panel, i, height)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="sheet" width="{width}" height="{height}"/>',
            f'<text class="title" x="{MARGIN}" y="36">{escape(title)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, index: int, height: int) -> Iterator[str]:
    """A panel's frame and title, then its loop, lines and boxes from the bottom up."""
    left, base = MARGIN + index * (PANEL + GAP), height - MARGIN
    top = base - len(panel.rows) * STEP - 34
    yield f'<rect class="panel" x="{left}" y="{top}" width="{PANEL}" height="{base - top}"/>'
    yield f'<text class="name" x="{left + 14}" y="{top + 24}">{escape(panel.title)}</text>'
    if panel.looped is not None:
        yield from _loop(panel, left, base)
    for number, row in enumerate(panel.rows):
        for place, box in enumerate(row):
            if box is not None:
                x, width = _place(panel, left, place, len(row))
                yield from _box(box, x, _middle(base, number), width)
    yield from _lines(panel, left, base)
    for first, last in panel.residuals:
        yield _residual(left, _middle(base, first), _middle(base, last))


def _loop(panel: Panel, left: int, base: int) -> Iterator[str]:
    assert panel.looped is not None
    first, last = panel.looped
    top, bottom = _middle(base, last) - BOX / 2 - 9, _middle(base, first) + BOX / 2 + 9
    x, height = left + 8, bottom - top
    yield f'<rect class="loop" x="{x}" y="{top}" width="{PANEL - 16}" height="{height}"/>'
    label = escape(panel.loop_label)
    turned = f'transform="rotate(-90 {left + 22} {(top + bottom) / 2})"'
    yield f'<text class="detail" x="{left + 22}" y="{(top + bottom) / 2}" {turned}>{label}</text>'


def _box(box: Box, x: float, y: float, width: float) -> Iterator[str]:
    if not box.detail and len(box.title) == 1:
        width = BOX
    yield (
        f'<rect class="{box.kind}" x="{x - width / 2:g}" y="{y - BOX / 2:g}" '
        f'width="{width:g}" height="{BOX}"/>'
    )
    if not box.detail:
        yield f'<text x="{x:g}" y="{y + 5:g}">{escape(box.title)}</text>'
        return
    yield f'<text x="{x:g}" y="{y - 3:g}">{escape(box.title)}</text>'
    yield f'<text class="detail" x="{x:g}" y="{y + 13:g}">{escape(box.detail)}</text>'


def _lines(panel: Panel, left: int, base: int) -> Iterator[str]:
    """Each row's outputs to the next row's boxes: straight where they are as many, else elbows."""
    for number, (below, above) in enumerate(zip(panel.rows, panel.rows[1:], strict=False)):
        start, end = _middle(base, number) - BOX / 2, _middle(base, number + 1) + BOX / 2
        count = max(len(below), len(above))
        for place in range(count):
            source = place if len(below) == count else 0
            target = place if len(above) == count else 0
            x, _ = _place(panel, left, source, len(below))
            goal, _ = _place(panel, left, target, len(above))
            first = start if below[source] is not None else start + BOX
            bend = (start + end) / 2
            tip = ' marker-end="url(#tip)"' if above[target] is not None else ""
            yield f'<path class="line" d="M{x:g} {first:g}V{bend:g}H{goal:g}V{end:g}"{tip}/>'


def _residual(left: int, first: float, last: float) -> str:
    """From under the box at `first` around its side into the sum at `last`."""
    x, side = left + PANEL / 2, left + PANEL - SIDE[True] + 16
    return (
        f'<path class="line" d="M{x:g} {first + BOX / 2 + 13:g}H{side}V{last:g}'
        f'H{x + BOX / 2:g}" marker-end="url(#tip)"/>'
    )


def _place(panel: Panel, left: int, place: int, count: int) -> tuple[float, float]:
    """The middle and the width of box `place` among `count` side by side."""
    side = SIDE[bool(panel.residuals)]
    share = (PANEL - 2 * side) / count
    return left + side + share * (place + 0.5), min(share - 10, PANEL - 2 * SIDE[True])


def _middle(base: int, row: int) -> float:
    return base - STEP * (row + 0.5)
