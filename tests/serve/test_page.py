"""The chat page in headless Chromium, against the real server and a model whose text we know."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from llamaseek.serve.keys import ApiKey
from tests.safety.scripted import deciding_guard
from tests.serve.browser import Tab, needs_chromium, tab
from tests.serve.running import TOKENIZER, Running, running
from tests.serve.spoken import STORY, Speech, finds, spoken_service

pytestmark = needs_chromium
QUESTION = "Tell me a story."
FOX = "The old fox ran away."
TOOL = {"type": "function", "function": {"name": "find_animal", "parameters": {"type": "object"}}}


def test_a_chat_streams_and_shows_its_figures(page: Tab, speech: Speech) -> None:
    assert page.ask(QUESTION) == STORY
    figures = page.page.locator(".figures").text_content()
    count = len(speech.ids) - 1
    assert re.fullmatch(rf"{count} tokens · \d+ a second · first after \d+ ms", figures)
    assert page.page.locator("article.user .text").text_content() == QUESTION
    assert page.page.title() == f"{QUESTION} · llamaseek"
    assert page.page.locator("#model").input_value() == "tiny"
    assert page.page.locator("#status").text_content() == STORY
    assert page.ask("And then?", 2) == STORY


def test_stop_keeps_what_was_said(page: Tab, server: Running, speech: Speech) -> None:
    speech.pause = 0.05
    for stop in (lambda: page.page.click("#stop"), lambda: page.page.keyboard.press("Escape")):
        page.page.click("#new-chat")
        page.say(QUESTION)
        page.page.locator(".assistant .text", has_text="fox").wait_for()
        stop()
        said = page.answered()
        assert STORY.startswith(said.strip()) and len(said) < len(STORY)
        assert "stopped by you" in page.page.locator(".figures").text_content()
        assert server.idle()
        assert page.page.locator("#send").is_visible()


def test_an_edited_message_begins_anew_from_there(page: Tab, speech: Speech) -> None:
    page.ask(QUESTION)
    page.ask("And then?", 2)
    speech.say(FOX)
    page.page.locator("article.user").first.get_by_role("button", name="Edit").click()
    box = page.page.get_by_label("Your message, edited")
    assert box.input_value() == QUESTION
    box.press("Escape")
    page.page.locator("article.user").first.get_by_role("button", name="Edit").click()
    box.fill("Tell me another.")
    box.press("Enter")
    page.page.locator(".assistant .text", has_text=FOX).wait_for()
    assert page.answered() == FOX
    assert page.page.locator("article").count() == 2
    assert page.page.locator("article.user .text").text_content() == "Tell me another."


def test_answer_again_replaces_the_answer(page: Tab, speech: Speech) -> None:
    page.ask(QUESTION)
    speech.say(FOX)
    page.page.get_by_role("button", name="Answer again").click()
    page.page.locator(".assistant .text", has_text=FOX).wait_for()
    assert page.answered() == FOX
    assert page.page.locator("article").count() == 2


def share(text: str) -> float:
    """A percentage as shown, as a number."""
    return float(text.removeprefix("<").removesuffix("%")) / 100


def test_a_token_shows_the_probabilities_that_the_model_had(page: Tab, server: Running) -> None:
    page.ask(QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    body = {"messages": messages, "temperature": 0, "logprobs": True, "top_logprobs": 10}
    answer = server.post("/v1/chat/completions", **body).json()["choices"][0]
    scored = answer["logprobs"]["content"]
    tokens = page.page.locator(".token")
    assert tokens.count() == len(scored)
    assert [tokens.nth(at).text_content() for at in range(len(scored))] == [
        entry["token"] for entry in scored
    ]
    tokens.nth(3).click()
    check_inspector(page, scored, 3)
    page.page.get_by_role("button", name="Token after").click()
    check_inspector(page, scored, 4)
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("ArrowLeft")
    check_inspector(page, scored, 2)
    page.page.keyboard.press("Escape")
    assert page.page.locator("#inspector").is_hidden()
    assert page.page.locator(".token.looked").count() == 0


def check_inspector(page: Tab, scored: list[Any], at: int) -> None:
    """The panel says what the server says of this token."""
    entry = scored[at]
    assert page.page.locator("#place").text_content() == f"token {at + 1} of {len(scored)}"
    shown = page.page.locator(".bars li:not(.rest) .share").all_text_contents()
    wanted = [math.exp(one["logprob"]) for one in entry["top_logprobs"]]
    assert len(shown) == len(wanted) == 10
    for text, chance in zip(shown, wanted, strict=True):
        assert share(text) == pytest.approx(chance, abs=6e-4)
    chosen = page.page.locator(".bars .chosen code").text_content()
    assert chosen == entry["token"].replace(" ", "␣")
    assert page.page.locator(".token.looked").text_content() == entry["token"]
    every = page.page.locator(".bars .share").all_text_contents()
    assert sum(map(share, every)) == pytest.approx(1, abs=0.01)


def test_the_keyboard_alone_reaches_everything(page: Tab) -> None:
    page.ask(QUESTION)
    page.page.keyboard.press("Shift+Tab")
    reached = set()
    for _ in range(30):
        reached.add(page.page.evaluate("document.activeElement.outerHTML.slice(0, 60)"))
        if page.page.evaluate("document.activeElement.matches('article .text')"):
            break
        page.page.keyboard.press("Shift+Tab")
    else:
        pytest.fail(f"no answer was reached, only {reached}")
    page.page.keyboard.press("Enter")
    assert page.page.locator("#place").text_content().startswith("token 1 of")
    page.page.keyboard.press("ArrowRight")
    assert page.page.locator("#place").text_content().startswith("token 2 of")
    page.page.keyboard.press("Escape")
    assert page.page.evaluate("document.activeElement.matches('article .text')")


def test_everything_has_a_name_and_live_regions_tell(page: Tab) -> None:
    page.ask(QUESTION)
    page.page.locator(".token").first.click()
    page.page.click("#open-settings")
    unnamed = page.page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, [role=group]")]
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
        .map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.page.locator("[role=alert]").count() == 1
    assert page.page.locator("[role=status]").get_attribute("aria-live") == "polite"
    assert page.page.locator("html").get_attribute("lang") == "en"


CONTRAST = """
() => {
  const rgb = (name) => {
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return found;
  };
  const light = (name) => {
    const [r, g, b] = rgb(name).map((c) => {
      c /= 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = [["--ink", "--paper"], ["--ink", "--card"], ["--soft", "--paper"], ["--soft", "--card"],
    ["--ink", "--you"], ["--accent", "--paper"], ["--on-accent", "--accent"], ["--warn", "--warn-tint"],
    ["--good", "--paper"], ["--ink", "--tint"]];
  return pairs.map(([a, b]) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return [a + " on " + b, (high + 0.05) / (low + 0.05)];
  });
}
"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(browser: Any, server: Running, scheme: str) -> None:
    with tab(browser, server.url, color_scheme=scheme) as page:
        for pair, ratio in page.page.evaluate(CONTRAST):
            assert ratio >= 4.5, f"{scheme}: {pair} has {ratio:.2f}"  # WCAG 2.2, 1.4.3
        page.page.click("#theme")
        other = {"light": "dark", "dark": "light"}[scheme]
        assert page.page.evaluate("document.documentElement.dataset.theme") == other
        page.page.reload()
        assert page.page.evaluate("document.documentElement.dataset.theme") == other


def test_a_reload_keeps_conversations_and_settings(page: Tab) -> None:
    page.ask(QUESTION)
    page.page.click("#open-settings")
    page.page.get_by_label("System message").fill("Be kind.")
    page.page.keyboard.press("Escape")
    page.page.click("#new-chat")
    page.ask("Another one")
    page.page.reload()
    assert page.answered() == STORY
    assert page.page.locator("#chats .chat").all_text_contents() == ["Another one", QUESTION]
    page.page.locator("#chats .chat").nth(1).click()
    assert page.page.locator("article.user .text").text_content() == QUESTION
    page.page.locator(".token").nth(2).click()
    assert page.page.locator(".bars li").count() >= 10
    assert page.page.locator("#set-system").input_value() == "Be kind."
    page.page.locator("#chats li").first.hover()
    page.page.get_by_role("button", name="Delete “Another one”").click()
    page.page.reload()
    assert page.page.locator("#chats .chat").all_text_contents() == [QUESTION]


def test_settings_reach_the_server(page: Tab) -> None:
    page.page.click("#open-settings")
    page.page.get_by_label("System message").fill("Be kind.")
    page.page.get_by_label("Longest answer").fill("5")
    page.page.get_by_label("Seed").fill("7")
    page.page.get_by_label("Stop before").fill("wolf\nbear")
    page.page.locator("#set-temperature").fill("0.5")
    page.page.locator("#set-temperature").fill("0")
    page.page.get_by_label("Ask for probabilities").uncheck()
    page.page.keyboard.press("Escape")
    with page.page.expect_request("**/v1/chat/completions") as asked:
        said = page.ask(QUESTION)
    body = json.loads(asked.value.post_data)
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (body["max_tokens"], body["seed"], body["stop"]) == (5, 7, ["wolf", "bear"])
    assert "logprobs" not in body
    assert said == TOKENIZER.decode(TOKENIZER.encode(STORY)[:5])
    assert "cut at the longest answer" in page.page.locator(".figures").text_content()
    assert page.page.locator(".token").count() == 0


def test_offline_is_told_and_nothing_is_lost(page: Tab) -> None:
    page.ask(QUESTION)
    page.context.set_offline(True)
    page.say("Are you there?")
    page.page.locator("#notice", has_text="cannot be reached").wait_for()
    assert page.page.locator("article.user .text").last.text_content() == "Are you there?"
    page.context.set_offline(False)
    page.page.get_by_role("button", name="Try again").click()
    assert page.answered(2) == STORY
    assert page.page.locator("article").count() == 4
    assert page.page.locator("#notice").is_hidden()


def test_the_server_s_refusals_are_shown(page: Tab, server: Running) -> None:
    page.page.click("#open-settings")
    page.page.get_by_label("System message").fill("fox " * 3000)
    page.page.keyboard.press("Escape")
    page.say(QUESTION)
    page.page.locator("#notice", has_text="context").wait_for()


def test_a_tool_s_call_is_shown_and_answered(page: Tab, speech: Speech) -> None:
    speech.say('{"name": "find_animal", "parameters": {"colour": "red"}}')
    page.page.click("#open-settings")
    page.page.get_by_label("Tools").fill("[not json")
    page.page.keyboard.press("Escape")
    page.say(QUESTION)
    page.page.locator("#notice", has_text="Tools").wait_for()
    page.page.click("#open-settings")
    page.page.get_by_label("Tools").fill(json.dumps([TOOL]))
    page.page.keyboard.press("Escape")
    page.page.click("#new-chat")
    page.say(QUESTION)
    card = page.page.locator(".call")
    assert card.locator("strong").text_content() == "find_animal"
    assert json.loads(card.locator("pre").text_content()) == {"colour": "red"}
    speech.say(FOX)
    card.get_by_label("What find_animal returned").fill("a fox")
    with page.page.expect_request("**/v1/chat/completions") as asked:
        card.get_by_role("button").click()
    assert page.answered(2) == FOX
    *_, call, result = json.loads(asked.value.post_data)["messages"]
    assert call["tool_calls"][0]["function"]["name"] == "find_animal"
    assert result == {
        "role": "tool",
        "tool_call_id": call["tool_calls"][0]["id"],
        "content": "a fox",
    }


def test_a_guard_s_refusals_and_verdicts_are_shown(browser: Any) -> None:
    guard = deciding_guard(finds("steal", "buzzed"))
    with running(spoken_service(Speech(), guard)) as server, tab(browser, server.url) as page:
        page.say("How do I steal a bike?")
        line = page.page.locator(".guard.refused")
        assert re.fullmatch(
            r"Message refused by the guard: S2 Non-Violent Crimes \(\d+\.\d% unsafe\)",
            line.text_content(),
        )
        with page.page.expect_request("**/v1/chat/completions") as asked:
            page.say(QUESTION)
        (told,) = json.loads(asked.value.post_data)["messages"]
        assert told["content"] == QUESTION, "a refused exchange is not part of what follows"
        page.page.locator(".guard.refused").nth(1).wait_for()
        said = page.page.locator(".assistant .text").last.text_content()
        assert "chased" in said and "buzzed" not in said
        assert "Answer refused" in line.last.text_content()


def test_a_safe_answer_shows_that_the_guard_passed_it(browser: Any) -> None:
    guard = deciding_guard(finds())
    with running(spoken_service(Speech(), guard)) as server, tab(browser, server.url) as page:
        assert page.ask(QUESTION) == STORY
        passed = page.page.locator(".guard.passed").text_content()
        assert re.fullmatch(r"Guard: message safe \(.*\), answer safe \(.*\)", passed)


def test_the_page_asks_for_the_key_that_the_server_asks_for(browser: Any) -> None:
    service = spoken_service(Speech(), api_keys=(ApiKey("open sesame"),))
    with running(service) as server, tab(browser, server.url) as page:
        for key in ("wrong", "open sesame"):
            page.page.get_by_label("Key", exact=True).fill(key)
            page.page.get_by_role("button", name="Use this key").click()
        page.page.locator("#model option").wait_for(state="attached")
        assert page.ask(QUESTION) == STORY
        page.page.reload()
        assert page.ask("Again", 2) == STORY


def test_nothing_can_be_asked_of_another_host(page: Tab, server: Running) -> None:
    headers = server.client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    refused = page.page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => '', (error) => error.message)"
    )
    assert "Failed to fetch" in refused
    assert (
        page.page.evaluate(
            """() => new Promise((tell) => {
          addEventListener("securitypolicyviolation", (event) => tell(event.effectiveDirective));
          fetch("http://127.0.0.1:9/").catch(() => {});
        })"""
        )
        == "connect-src"
    )
    for name in ("../options.py", "..%2foptions.py", "missing.js", "__init__.py"):
        assert server.client.get(f"/page/{name}").status_code == 404


def test_what_a_model_says_is_text_and_never_markup(page: Tab, speech: Speech) -> None:
    speech.say('<img src="http://127.0.0.1:9/x" onerror="document.title=1"><b>bold</b>')
    assert page.ask("<script>document.title = 1</script>") == (
        '<img src="http://127.0.0.1:9/x" onerror="document.title=1"><b>bold</b>'
    )
    assert page.page.locator("article img, article b, article script").count() == 0


def test_a_phone_has_room_for_everything(browser: Any, server: Running, speech: Speech) -> None:
    speech.say(STORY)
    phone = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}
    with tab(browser, server.url, **phone) as page:
        page.ask(QUESTION)
        for act in (None, "#menu"):
            if act:
                page.page.click(act)
                drawer = page.page.get_by_role("button", name="New conversation")
                drawer.wait_for(state="visible", timeout=5000)  # it slides in
                page.page.locator("#chats .chat").first.click()
            assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.page.locator(".token").nth(2).tap()
        assert page.page.locator("#inspector").is_visible()
        # The list scrolls the token into sight, which takes a moment.
        seen = """() => {
            const token = document.querySelector(".token.looked").getBoundingClientRect();
            return token.bottom <= document.querySelector("#inspector").getBoundingClientRect().top;
        }"""
        page.page.wait_for_function(seen, timeout=5000)  # the panel does not hide its token
