"""The pictures of the chat page in docs/: `python -m tests.serve.pictures [FOLDER]`.

Those of a conversation and its probabilities show SmolLM2, which has to be downloaded; what
Markdown looks like is shown with texts written for it.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.engine.engine import Engine
from llamaseek.engine.options import EngineOptions
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.service import Service
from tests.clients.campaign import real_service
from tests.engine.test_adapters import adapted
from tests.models.shapes import tiny_model
from tests.serve.browser import Tab, chromium, tab
from tests.serve.running import TOKENIZER, running
from tests.serve.spoken import Speech
from tests.serve.test_page_answers import HOSTILE

DESK = {"viewport": {"width": 1280, "height": 800}, "device_scale_factor": 1.5}
PHONE = {
    "viewport": {"width": 390, "height": 780},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
TUNED = "sums-tuned"
SUMS = "What is the sum of the numbers from 1 to 10?"
LONG = r"""## Sum of the first $n$ numbers

Pair the first with the last: each pair is $n + 1$, and there are $n/2$ of them, so

$$\sum_{i=1}^{n} i = \frac{n(n+1)}{2}.$$

```python
def total(n: int) -> int:
    # without a loop
    return n * (n + 1) // 2


assert total(10) == sum(range(11)) == 55
```

| n | total | as a sum |
|---:|---:|:---|
| 3 | 6 | 1 + 2 + 3 |
| 10 | 55 | 1 + … + 10 |

1. For even $n$ the pairs come out even.
2. For odd $n$ the **middle** number is `(n + 1) / 2`:
   - it is half of a pair, $\frac{1}{2}(n+1)$;
   - so the same formula holds.

> Other formulas: $\sqrt{x^2 + y^2}$ and $e^{i\pi} + 1 = 0$.
"""
SHORT = "It is **55**: use $n(n+1)/2$ with $n = 10$.\n\n```python\nsum(range(11))\n```\n"
ARABIC = """## مجموع الأعداد

مجموع الأعداد من 1 إلى 10 هو **55**. القاعدة: $n(n+1)/2$.

- نجمع الأول مع الأخير: 1 + 10
- هناك خمسة أزواج

```python
sum(range(11))
```
"""


class Texts(Speech):
    """Says `base` where the base is asked, `tuned` where the adapter is."""

    def __init__(self, base: str = LONG, tuned: str = SHORT) -> None:
        super().__init__(base)
        self.texts = {"": base, TUNED: tuned}

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the model that runs."""
        self.say(self.texts[self.engine.scheduler.running[0].request.adapter])
        return super().logits(hidden)


def written(speech: Texts) -> Service:
    """A service of a base and its adapter that say these texts."""
    sizes: dict[str, Any] = {"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 2048}
    with tempfile.TemporaryDirectory() as place:
        save_adapter(adapted("llama3", 1, **sizes), Path(place) / "adapter", "base")
        adapters = {TUNED: read_adapter(Path(place) / "adapter")}
    model = tiny_model("llama3", **sizes)
    engine = Engine(model, TOKENIZER, EngineOptions(max_num_seqs=1), adapters)
    speech.engine = engine
    engine.runner.logits = speech.logits  # type: ignore[method-assign]
    engine.runner.fused = None  # which makes its logits in one call with the layers
    return Service(engine, TOKENIZER, ServeOptions(port=0, name="smollm2-135m-instruct"))


@contextmanager
def opened(browser: Any, url: str, longest: int = 900, **context: Any) -> Iterator[Tab]:
    """A tab whose answers may be that long."""
    with tab(browser, url, **context) as made:
        made.page.click("#open-settings")
        made.page.get_by_label("Longest answer").fill(str(longest))
        made.page.keyboard.press("Escape")
        yield made


def shoot(made: Tab, path: Path) -> None:
    """Write what is seen with few colours, under 150 kB."""
    made.page.mouse.move(0, 0)
    made.page.wait_for_timeout(600)  # for libraries, and until what slides has arrived
    image = Image.open(io.BytesIO(made.page.screenshot())).convert("RGB")
    image.quantize(96).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def conversations(browser: Any, folder: Path) -> None:
    """Of SmolLM2, by day, by night and on a phone."""
    service = real_service()
    assert service is not None, "llamaseek download smollm2-135m-instruct"
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("light", DESK), ("dark", DESK | {"color_scheme": "dark"}), ("phone", PHONE),
    )  # fmt: skip
    with running(service) as run:
        for name, look in looks:
            with opened(browser, run.url, 60, **look) as made:
                for question in ("Name a colour of the sky.", "What is 12 plus 30?"):
                    made.ask(question)
                    if name == "phone":
                        made.page.click("#menu")
                    made.page.click("#new-chat")
                made.ask("What is the capital of France?")
                made.ask("What is it known for?", 2)
                made.page.locator("article.assistant").last.locator(".token").nth(5).click()
                shoot(made, folder / f"page-{name}.png")


def texts(browser: Any, folder: Path) -> None:
    """Of Markdown: a long answer, two models', one in Arabic, and a hostile one."""
    speech = Texts()
    look = {"viewport": {"width": 1180, "height": 860}}
    tall = {"viewport": {"width": 1180, "height": 1060}}
    with running(written(speech)) as run:
        with opened(browser, run.url, **tall) as made:
            made.ask(SUMS)
            shoot(made, folder / "page-answer.png")
        with opened(browser, run.url, color_scheme="dark", **look) as made:
            made.page.locator("#beside summary").click()
            made.page.get_by_role("checkbox", name=TUNED).check()
            made.page.locator("#beside summary").click()
            made.say(SUMS)
            made.page.locator("article.assistant .figures").nth(1).wait_for()
            made.page.evaluate("document.querySelector('#scroll').scrollTop = 0")
            shoot(made, folder / "page-beside.png")
        for name, question, text, shape in (
            ("arabic", "ما مجموع الأعداد من 1 إلى 10؟", ARABIC, PHONE),
            ("hostile", "Show me the document.", HOSTILE, look),
        ):
            speech.texts[""] = text
            with opened(browser, run.url, **shape) as made:
                made.ask(question)
                shoot(made, folder / f"page-{name}.png")


def main() -> None:
    """Make all of them anew."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    with chromium() as browser:
        texts(browser, folder)
        conversations(browser, folder)


if __name__ == "__main__":
    main()
