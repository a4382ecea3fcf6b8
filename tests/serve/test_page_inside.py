"""The look inside the model in headless Chromium, against the server's own answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.safety.scripted import deciding_guard
from tests.serve.browser import Tab, needs_chromium, tab
from tests.serve.running import TOKENIZER, Running, running
from tests.serve.spoken import STORY, Speech, finds, spoken_service

pytestmark = needs_chromium
QUESTION = "Tell me a story."
FOX = "The old fox ran away."


@pytest.fixture(scope="module", params=["llama3", "deepseek_v3"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def inside_server(family: str) -> Iterator[Running]:
    with running(spoken_service(Speech(), family=family)) as run:
        yield run


def look(page: Tab, token: int) -> dict[str, Any]:
    """Open the look inside at a token of the answer; the server's answer to it."""
    page.page.locator(".token").nth(token).click()
    with page.page.expect_response("**/internals") as told:
        page.page.get_by_role("button", name="Look inside the model").click()
    page.page.locator("#inside-view").wait_for()
    found: dict[str, Any] = told.value.json()
    return found


def shares(page: Tab, list_: str) -> list[float]:
    texts = page.page.locator(f"{list_} .share").all_text_contents()
    return [float(text.removeprefix("<").removesuffix("%")) / 100 for text in texts]


def visible(text: str) -> str:
    """A token as the page writes it."""
    if text.startswith("bytes:"):
        return text.removeprefix("bytes:").replace("\\x", "·")
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def check_shown(page: Tab, found: dict[str, Any], head: int | None) -> None:
    """The panel shows what the server sent."""
    rows = found["attention"] if head is None else [found["attention"][head]]
    weights = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    best = sorted(weights, reverse=True)[:8]
    assert shares(page, "#inside-read") == pytest.approx(best, abs=6e-4)
    says = page.page.locator("#inside-says tr")
    assert says.count() == len(found["layers"])
    assert says.locator("td:first-of-type code").all_text_contents() == [
        visible(best[0]) for best, *_ in found["layers"]
    ]
    wanted = [best[1] for best, *_ in found["layers"]]
    assert shares(page, "#inside-says") == pytest.approx(wanted, abs=6e-4)
    kept = page.page.locator("#inside-kept .share").all_text_contents()
    count = found["token"] + 1
    sizes = found["cache"]["bytes_per_token"], found["cache"]["full_bytes_per_token"]
    assert [text.split(" × ")[0] for text in kept] == [str(count)] * 2
    each = [text.split(" × ")[1].split(" B")[0].replace(",", "") for text in kept]
    assert each == [str(size) for size in sizes]


def test_it_shows_what_the_server_says(browser: Any, inside_server: Running, family: str) -> None:
    with tab(browser, inside_server.url) as page:
        assert page.ask(QUESTION) == STORY
        assert not [url for url in page.asked if url.endswith("/internals")]
        found = look(page, 3)
        assert found["tokens"][found["token"]] == page.page.locator(".token").nth(3).text_content()
        check_shown(page, found, None)
        page.page.get_by_role("combobox", name="Head").select_option("1")
        check_shown(page, found, 1)
        with page.page.expect_response("**/internals") as told:
            page.page.get_by_role("slider", name="Layer").press("ArrowRight")
        assert json.loads(told.value.request.post_data)["layer"] == 1
        page.page.locator("#inside:not([aria-busy])").wait_for()
        found = told.value.json()
        check_shown(page, found, 1)
        experts = page.page.locator("#inside-experts")
        assert experts.is_visible() == (family == "deepseek_v3")
        if family == "deepseek_v3":
            load = page.page.locator("#inside-load li").all_text_contents()
            assert [int(text.split()[-2]) for text in load] == found["experts"]["load"]
            chosen = page.page.locator("#inside-load .chosen").count()
            assert chosen == len(found["experts"]["chosen"][-1])
            first = page.page.locator("#inside-went td").first.text_content()
            pairs = zip(found["experts"]["chosen"][-1], found["experts"]["gates"][-1], strict=True)
            assert first == ", ".join(f"{expert + 1} ({gate:.2f})" for expert, gate in pairs)
        page.page.keyboard.press("Escape")
        assert page.page.locator("#inside").is_hidden()
        assert page.page.evaluate("document.activeElement.id") == "look-inside"
        assert page.page.locator("article.assistant .text").text_content() == STORY
        assert page.ask("And then?", 2) == STORY


def test_the_keyboard_walks_from_token_to_token(browser: Any, inside_server: Running) -> None:
    with tab(browser, inside_server.url) as page:
        page.ask(QUESTION)
        page.page.locator("article .text[tabindex]").press("Enter")
        page.page.get_by_role("button", name="Look inside the model").press("Enter")
        page.page.locator("#inside-view").wait_for()
        place = page.page.locator("#inside-place")
        before = int(place.text_content().split()[1])
        with page.page.expect_response("**/internals") as told:
            page.page.locator("#inside-text").press("ArrowRight")
        assert told.value.json()["token"] == before
        assert place.text_content().startswith(f"token {before + 1} of")
        unnamed = page.page.evaluate(
            """[...document.querySelectorAll(
              "#inside :is(button, input, select, [tabindex], section, [role=group])")]
            .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby")
              || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
        )
        assert unnamed == []


def test_a_phone_has_room_for_it(browser: Any, inside_server: Running) -> None:
    phone = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}
    with tab(browser, inside_server.url, **phone) as page:
        page.ask(QUESTION)
        page.page.locator(".token").nth(2).tap()
        page.page.get_by_role("button", name="Look inside the model").tap()
        page.page.locator("#inside-view").wait_for()
        fits = "document.querySelector('#inside').scrollWidth <= innerWidth"
        assert page.page.evaluate(fits)


def test_what_the_server_refuses_is_told_in_the_panel(browser: Any) -> None:
    service = spoken_service(Speech(FOX), deciding_guard(finds("wolf")))
    with running(service) as run, tab(browser, run.url) as page:
        page.ask(QUESTION)
        page.page.locator(".token").first.click()
        page.page.get_by_role("button", name="Look inside the model").click()
        page.page.locator("#inside-status", has_text="has a guard").wait_for()
        assert page.page.locator("#inside-view").is_hidden()


def test_what_a_model_says_is_text_inside_too(page: Tab, speech: Speech) -> None:
    speech.say('<img src="http://127.0.0.1:9/x"><b>bold</b>')
    page.ask(QUESTION)
    look(page, 2)
    assert page.page.locator("#inside img, #inside b").count() == 0
    assert TOKENIZER.decode(speech.ids[:3]) in page.page.locator("#inside-text").text_content()
