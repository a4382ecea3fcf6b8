"""What the chat page shows of answers: Markdown, reasoning, several models; and what it keeps."""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from llamaseek.checkpoints.peft import read_adapter, save_adapter
from llamaseek.engine.engine import Engine
from llamaseek.serve.options import ServeOptions
from llamaseek.serve.routes.examples import trained_on
from llamaseek.serve.service import Service
from tests.engine.test_adapters import adapted
from tests.models.shapes import tiny_model
from tests.serve.browser import Tab, needs_chromium, tab
from tests.serve.running import TOKENIZER, Running, running
from tests.serve.spoken import STORY, Speech, spoken_service
from tests.text.styles import tokenizer

pytestmark = needs_chromium
RICH = r"""## Sums

The sum is $\sum_{i=1}^{n} i = \frac{n(n+1)}{2}$, a coffee costs $5 and a cake $10.

\[ e^{i\pi} + 1 = 0 \]

```python
def total(n: int) -> int:
    return n * (n + 1) // 2  # <b>not bold</b>
```

| n | total |
|---|------:|
| 3 | 6 |

- [x] **done**, see [the page](https://example.org/a)
"""
HOSTILE = """# Hello <script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 1"> ![a picture](https://evil.example/p.png)
<svg onload="window.hacked = 1"><style>* { display: none }</style>
<iframe src="https://evil.example/"></iframe> <form action="https://evil.example/"><input></form>

[one](javascript:window.hacked=1) [two](data:text/html,<script>window.hacked=1</script>)
[three](&#106;avascript:window.hacked=1) <https://evil.example/q> [ref]

$\\href{javascript:window.hacked=1}{x}$ $\\includegraphics{https://evil.example/m.png}$
$$\\htmlStyle{background: url(https://evil.example/s.png)}{y}$$

```html" onclick="window.hacked=1
<script>window.hacked = 1</script>
```

<a href="https://evil.example/" class="skip" id="prompt" style="position: fixed">raw</a>

[ref]: javascript:window.hacked=1 "title"
"""


def said(page: Tab) -> Any:
    """The place of the last answer."""
    return page.page.locator("article.assistant .text").last


def ask_for(page: Tab, speech: Speech, text: str) -> Any:
    speech.say(text)
    page.page.locator("#open-settings").click()
    page.page.get_by_label("Longest answer").fill("1500")
    page.page.keyboard.press("Escape")
    page.ask("Go on.")
    return said(page)


def test_code_tables_and_maths_are_shown_as_such(page: Tab, speech: Speech) -> None:
    answer = ask_for(page, speech, RICH)
    answer.locator(".hljs-keyword", has_text="def").wait_for()
    answer.locator("math").nth(1).wait_for()
    assert answer.locator("math").count() == 2
    assert answer.locator(".maths math[display=block]").count() == 1
    assert "costs $5 and a cake $10" in answer.text_content()
    code = answer.locator("pre code").text_content()
    assert code == RICH.split("```")[1].removeprefix("python\n")
    assert answer.locator("td").all_text_contents() == ["3", "6"]
    assert answer.locator("td").last.get_attribute("align") == "right"
    assert answer.locator("li").text_content().startswith("☑ done")
    link = answer.locator("a")
    assert link.get_attribute("href") == "https://example.org/a"
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert answer.locator("script, img, svg, style").count() == 0


def test_the_tokens_of_a_markdown_answer_can_be_looked_at(page: Tab, speech: Speech) -> None:
    ask_for(page, speech, RICH)
    button = page.page.get_by_role("button", name="Tokens and their probabilities")
    button.click()
    assert said(page).text_content() == RICH.rstrip("\n") + ("\n" if RICH.endswith("\n") else "")
    said(page).locator(".token").nth(3).click()
    assert page.page.locator("#inspector .bars li").count() >= 10
    button.click()
    assert said(page).locator("h2").text_content() == "Sums"
    page.page.locator("#open-settings").click()
    page.page.get_by_label("Show Markdown").uncheck()
    page.page.keyboard.press("Escape")
    page.page.reload()
    assert said(page).locator(".token").count() and not said(page).locator("h2").count()


def test_a_hostile_document_runs_and_fetches_nothing(page: Tab, speech: Speech) -> None:
    answer = ask_for(page, speech, HOSTILE)
    page.page.wait_for_timeout(700)  # for libraries, and for what would be fetched
    assert page.page.evaluate("window.hacked") is None
    assert (
        answer.locator("script, img, svg, style, iframe, form, input, [style], [id]").count() == 0
    )
    assert answer.locator("[onclick], [onerror], [onload], [class=skip]").count() == 0
    links = answer.locator("a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert {one for one in links if one} == {"https://evil.example/p.png", "https://evil.example/q"}
    assert "<script>window.hacked = 1</script>" in answer.text_content()
    # What was asked of another host fails the fixture's check of the tab.


def test_a_text_right_to_left_is_set_so(page: Tab, speech: Speech) -> None:
    answer = ask_for(page, speech, "## مرحبا\n\n- قال: `x = 1`\n- نعم\n")
    directions = answer.locator("h2, li").evaluate_all(
        "a => a.map((e) => getComputedStyle(e).direction)"
    )
    assert directions == ["rtl"] * 3


def test_the_message_boxes_are_never_covered(browser: Any, server: Running, speech: Speech) -> None:
    """With the panel open, and while a message is edited below long answers."""
    speech.say(STORY)
    with tab(browser, server.url, viewport={"width": 375, "height": 640}) as opened:
        opened.ask("Go on.")
        opened.ask("Go on.", 2)
        opened.page.locator(".token").last.click()
        assert uncovered(opened, "#prompt")
        opened.page.locator("article.user").last.get_by_role("button", name="Edit").click()
        for width in (375, 730, 1000, 1090, 1200, 1400):
            opened.page.set_viewport_size({"width": width, "height": 640})
            opened.page.locator(".editor").scroll_into_view_if_needed()
            for box in (".editor textarea", ".editor .plain", ".editor .strong", "#prompt"):
                assert uncovered(opened, box), f"{box} at {width} px"


def uncovered(opened: Tab, selector: str) -> bool:
    """Whether an element is what one touches at its centre, and all of it is on the screen."""
    return bool(
        opened.page.evaluate(
            """(selector) => {
              const box = document.querySelector(selector);
              const { left, right, top, bottom } = box.getBoundingClientRect();
              const inside = top >= 0 && bottom <= innerHeight && left >= 0 && right <= innerWidth;
              const at = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
              return inside && box.contains(at);
            }""",
            selector,
        )
    )


def test_conversations_are_exported_and_imported(
    page: Tab, browser: Any, server: Running, speech: Speech, tmp_path: Path
) -> None:
    page.ask("Go on.")
    page.page.locator("#open-settings").click()
    page.page.get_by_label("System message").fill("Be brief.")
    page.page.get_by_label("Name to keep this prompt by").fill("brief")
    page.page.get_by_role("button", name="Keep").click()
    page.page.keyboard.press("Escape")
    with page.page.expect_download() as made:
        page.page.locator("#export").click()
    file = tmp_path / "kept.json"
    made.value.save_as(file)
    assert json.loads(file.read_text())["chats"][0]["messages"][1]["content"] == STORY
    with tab(browser, server.url) as other:
        other.page.set_input_files("#import-file", file)
        other.page.locator("#chats .chat").wait_for()
        assert other.page.locator(".assistant .text").text_content() == STORY
        other.page.locator("#open-settings").click()
        other.page.get_by_label("Prompts kept by name").select_option("brief")
        assert other.page.get_by_label("System message").input_value() == "Be brief."
        other.page.keyboard.press("Escape")
        file.write_text('{"messages": []}')
        other.page.set_input_files("#import-file", file)
        told = other.page.locator("#notice", has_text="kept.json is no file of conversations")
        told.wait_for()
        assert other.page.locator("#chats .chat").count() == 1


def test_reasoning_is_folded(browser: Any) -> None:
    speech = Speech("I count.\n</think>\n\nThere are three.", tokenizer("r1_distill"))
    with running(spoken_service(speech)) as server, tab(browser, server.url) as opened:
        assert opened.ask("How many?") == "There are three."
        folded = opened.page.locator("details.reasoning")
        assert folded.get_attribute("open") is None
        folded.locator("summary").click()
        assert folded.locator("pre").text_content() == "I count."
        shown = opened.page.locator(".assistant .token").all_text_contents()
        assert "".join(shown) == "There are three."


def test_models_answer_side_by_side(browser: Any, tmp_path: Path) -> None:
    """The base and an adapter on one prompt, each going on with its own answers."""
    sizes = {"vocab_size": TOKENIZER.vocab_size}
    save_adapter(adapted("llama3", 1, **sizes), tmp_path / "run" / "adapter", "base")
    (tmp_path / "run" / "after.jsonl").write_text('{"prompt": "What is 2 + 2?"}\n')
    adapters = {"tuned": read_adapter(tmp_path / "run" / "adapter")}
    engine = Engine(tiny_model("llama3", **sizes), TOKENIZER, None, adapters)
    options = ServeOptions(port=0, name="base")
    folders = {"tuned": tmp_path / "run" / "adapter"}
    service = Service(engine, TOKENIZER, options, folders=folders)
    with running(service) as server, tab(browser, server.url) as opened:
        page = opened.page
        page.locator("#open-settings").click()
        page.get_by_label("Longest answer").fill("8")
        page.keyboard.press("Escape")
        assert page.locator(".examples button").count() == 0
        page.locator("#beside summary").click()
        page.get_by_role("checkbox", name="tuned").check()
        assert page.locator("#beside summary").text_content() == "Beside it: 1"
        page.locator("#beside summary").click()
        talks: dict[str, list[dict[str, str]]] = {"base": [], "tuned": []}
        for turn, question in enumerate(("Say it.", "Again.")):
            opened.say(question)
            page.locator("article.assistant .figures").nth(2 * turn + 1).wait_for()
            columns = page.locator("article.assistant").last.locator(".answer")
            assert columns.locator("h3").all_text_contents() == ["base", "tuned"]
            for number, (name, talk) in enumerate(talks.items()):
                talk.append({"role": "user", "content": question})
                body = {"model": name, "messages": talk, "temperature": 0, "max_tokens": 8}
                answer = server.post("/v1/chat/completions", **body).json()
                assert "choices" in answer, answer
                told = answer["choices"][0]["message"]["content"]
                assert columns.nth(number).locator(".text").text_content() == told
                talk.append({"role": "assistant", "content": told})
        columns.nth(1).locator(".token").first.click()
        assert page.locator("#inspector .bars li").count() >= 10
        page.reload()
        assert page.locator(".answer").count() == 4
        page.locator("#new-chat").click()
        page.select_option("#model", "tuned")
        page.locator(".examples button", has_text="What is 2 + 2?").click()
        opened.answered()  # by the one model: it is not asked beside itself
        assert page.locator("article.user .text").text_content() == "What is 2 + 2?"


def test_examples_come_from_the_run_and_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert trained_on(folder) == []
    rows = [{"prompt": "What is 2 + 2?"}, {"prompt": "Once", "text": True}, {"prompt": "y" * 900}]
    (tmp_path / "after.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    widget = (
        "widget:\n- text: From the card\n- messages: [{role: user, content: A talk}]\n- nothing: 1"
    )
    (folder / "README.md").write_text(f"---\nlicense: mit\n{widget}\n---\n# Card\n")
    assert trained_on(folder) == ["From the card", "A talk", "What is 2 + 2?"]
    (folder / "README.md").write_text("---\nwidget: [[[\n---\n")
    (tmp_path / "after.jsonl").write_text("{")
    assert trained_on(folder) == []


def test_the_libraries_are_the_published_files() -> None:
    """The page's copies have the hashes that their notice records, and it names every one."""
    vendor = files("llamaseek.serve") / "page" / "vendor"
    copies = (file for file in vendor.iterdir() if file.name.endswith(".js"))
    found = {file.name: sha256(file.read_bytes()).hexdigest() for file in copies}
    lines = (vendor / "NOTICE.txt").read_text().splitlines()
    recorded = {line[66:]: line[:64] for line in lines if line[64:66] == "  "}
    assert found == {name: digest for name, digest in recorded.items() if name in found}
