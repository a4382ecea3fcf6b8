"""Pictures of reports for the docs: on a desktop, on a phone of 390 pixels, and in the dark.

python -m tests.report.pictures docs/report-sft.png RUN/report.html
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.serve.browser import chromium

PLACES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1000, "height": 1750}},
    "phone": {"viewport": {"width": 390, "height": 1750}},
    "dark": {"viewport": {"width": 1000, "height": 1750}, "color_scheme": "dark"},
}
COLOURS = 64  # of the palette, which keeps files below 150 kB
GAP = 20


def shots(browser: Any, page: Path) -> dict[str, bytes]:
    """The top of a page as each place shows it."""
    found = {}
    for name, place in PLACES.items():
        tab = browser.new_page(**place)
        tab.goto(page.resolve().as_uri())
        found[name] = tab.screenshot()
        tab.close()
    return found


def side_by_side(pictures: dict[str, bytes]) -> Image.Image:
    """The pictures beside each other at half their size, in few colours."""
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures.values()]
    width = sum(picture.width for picture in opened) + GAP * (len(opened) - 1)
    whole = Image.new("RGB", (width, opened[0].height), "#888888")
    at = 0
    for picture in opened:
        whole.paste(picture, (at, 0))
        at += picture.width + GAP
    small = whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)
    return small.quantize(COLOURS, dither=Image.Dither.NONE)


def main(target: Path, page: Path) -> None:
    """One picture of a report."""
    with chromium() as browser:
        side_by_side(shots(browser, page)).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
