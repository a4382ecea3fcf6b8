"""The chat page in a hurry: quick edits, several tabs, storage that others wrote, odd answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tests.serve.browser import Tab, needs_chromium
from tests.serve.running import Running
from tests.serve.spoken import STORY, Speech

pytestmark = needs_chromium
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALLS = '{"name": "find", "parameters": {"n": 1}}; {"name": "find", "parameters": {"n": 2}}'
HEBREW = "שלום לכם (ילדים)."


def kept(page: Any) -> list[list[str]]:
    """Who said what in each conversation that the browser keeps."""
    chats = json.loads(page.evaluate("localStorage.llamaseek"))["chats"]
    return [[f"{each['role']}: {each['content']}" for each in chat["messages"]] for chat in chats]


def test_a_new_start_before_the_first_token_is_answered(
    page: Tab, server: Running, speech: Speech
) -> None:
    speech.pause = 0.2
    page.say("One")
    page.page.get_by_role("button", name="Edit").click()
    page.page.get_by_label("Your message, edited").fill("Two")
    page.page.keyboard.press("Enter")
    page.page.locator(".assistant .text", has_text="The").wait_for()
    speech.pause = 0.0
    assert page.answered() == STORY
    assert kept(page.page) == [["user: Two", f"assistant: {STORY}"]]
    for _ in range(3):
        page.page.get_by_role("button", name="Answer again").click()
    assert page.answered() == STORY and server.idle()
    assert page.page.locator("article").count() == 2


def test_the_rate_is_the_server_s_though_all_pieces_come_at_once(
    page: Tab, server: Running, speech: Speech
) -> None:
    speech.pause = 0.02
    page.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(response=route.fetch())
    )  # which waits for the whole answer
    with page.page.expect_response("**/v1/chat/completions") as told:
        page.ask("One")
    figures = page.page.locator(".figures").text_content()
    last = json.loads(told.value.text().split("data: ")[-2])
    rate = last["timings"]["predicted_per_second"]
    assert 0 < rate <= 50 and f" · {round(rate)} a second" in figures
    page.page.locator(".token").first.click()
    count = last["usage"]["completion_tokens"]  # one number in every place
    assert figures.startswith(f"{count} tokens")
    assert page.page.locator("#place").text_content() == f"token 1 of {count}"


def test_what_is_said_before_the_models_are_listed_goes_to_the_first(page: Tab) -> None:
    held: list[Any] = []
    page.page.route("**/v1/models", lambda route: held.append(route))
    page.page.evaluate("localStorage.clear()")
    with page.page.expect_request("**/v1/models"):
        page.page.reload()
    page.say("Hello")
    page.page.get_by_role("button", name="Stop").wait_for()
    assert page.page.locator("#model option").count() == 0
    held[0].continue_()
    assert page.answered() == STORY
    assert page.page.locator("#notice").is_hidden()


def test_two_tabs_keep_each_other_s_conversations(page: Tab) -> None:
    page.ask("From the first")
    other = page.context.new_page()
    other.goto(page.url)
    other.click("#new-chat")
    other.fill("#prompt", "From the second")
    other.press("#prompt", "Enter")
    other.locator(".figures").wait_for()
    both = ["From the second", "From the first"]
    names = page.page.locator("#chats .chat")
    page.page.locator("#chats .chat", has_text="second").wait_for()
    assert names.all_text_contents() == both
    page.ask("And then?", 2)
    assert [len(chat) for chat in kept(page.page)] == [2, 4]
    page.page.reload()
    assert names.all_text_contents() == both
    assert page.page.locator("#title").text_content() == "From the first"
    page.page.locator("#chats li").first.hover()
    page.page.get_by_role("button", name="Delete “From the second”").click()
    other.locator(".welcome").wait_for()
    assert other.locator("#chats .chat").all_text_contents() == ["From the first"]


STRANGE = [
    "5",
    "{",
    '{"chats": [null, {"id": "a"}], "current": "a", "settings": 5}',
    '{"chats": [{"id": "a", "title": "t", "messages": [{"role": "user"}]}], "current": "a"}',
    '{"chats": [{"id": "a", "title": "t", "messages": [{"role": "assistant", "content": "x",'
    ' "tokens": [{}]}]}], "settings": {"stop": 5, "temperature": "hot", "tools": null}}',
]


def test_storage_that_others_wrote_is_lived_with(page: Tab) -> None:
    for strange in STRANGE:
        page.page.evaluate("(text) => { localStorage.llamaseek = text; }", strange)
        page.page.reload()
        assert page.ask("Hello") == STORY
        assert kept(page.page) == [["user: Hello", f"assistant: {STORY}"]]


def test_several_calls_are_answered_one_by_one(page: Tab, speech: Speech) -> None:
    page.page.click("#open-settings")
    page.page.get_by_label("Tools").fill("[")
    page.page.keyboard.press("Escape")
    page.say("Find both")
    page.page.locator("#notice", has_text="Tools").wait_for()
    assert page.page.locator("article.user").text_content() == "YouFind both"
    page.page.click("#open-settings")
    page.page.get_by_label("Tools").fill(json.dumps([TOOL]))
    page.page.keyboard.press("Escape")
    speech.say(CALLS)
    page.page.get_by_role("button", name="Try again").click()
    boxes = page.page.get_by_label("What find returned")
    boxes.nth(1).fill("the second")
    boxes.first.fill("the first")
    page.page.locator(".call button").first.click()
    assert boxes.count() == 1 and boxes.first.input_value() == "the second"
    speech.say(STORY)
    with page.page.expect_request("**/v1/chat/completions") as asked:
        page.page.locator(".call button").click()
    assert page.answered(2) == STORY
    sent = json.loads(asked.value.post_data)["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "tool"]
    assert [each["content"] for each in sent[2:]] == ["the first", "the second"]


def test_an_answer_s_end_leaves_what_is_open_alone(page: Tab, speech: Speech) -> None:
    page.ask("One")
    speech.pause = 0.03
    page.say("Two")
    page.page.locator(".token").nth(2).click()
    page.page.get_by_role("button", name="Edit").first.click()
    page.page.get_by_label("Your message, edited").fill("Something else")
    page.page.locator("#scroll").evaluate("(box) => { box.scrollTop = 0; }")
    assert page.answered(2) == STORY
    assert page.page.locator("#place").text_content().startswith("token 3 of")
    assert page.page.get_by_label("Your message, edited").input_value() == "Something else"


def test_escape_closes_what_is_open_before_it_stops(page: Tab, speech: Speech) -> None:
    page.ask("One")
    speech.pause = 0.05
    page.say("Two")
    page.page.locator(".token").first.click()
    page.page.locator("#next").press("Escape")
    page.page.get_by_role("button", name="Edit").first.click()
    page.page.get_by_label("Your message, edited").press("Escape")
    page.page.click("#open-settings")
    page.page.keyboard.press("Escape")
    speech.pause = 0.0
    assert page.answered(2) == STORY
    assert "stopped" not in page.page.locator(".figures").last.text_content()


def test_an_empty_answer_is_told(page: Tab, speech: Speech) -> None:
    speech.say("")
    page.ask("Anything?")
    assert page.page.locator(".figures").text_content() == "the answer is empty"


def test_text_from_right_to_left_begins_at_the_right(page: Tab, speech: Speech) -> None:
    speech.say(HEBREW)
    assert page.ask(HEBREW) == HEBREW
    places = page.page.evaluate("""() => [...document.querySelectorAll("article .text")].map((box) => {
        const range = document.createRange();
        const text = document.createTreeWalker(box, NodeFilter.SHOW_TEXT).nextNode();
        range.setStart(text, 0);
        range.setEnd(text, 1);
        const [inner, outer] = [range.getBoundingClientRect(), box.getBoundingClientRect()];
        return outer.right - inner.right;
    })""")  # noqa: E501
    assert len(places) == 2 and max(places) < 20


def test_a_server_that_calls_its_model_otherwise_by_now(page: Tab, server: Running) -> None:
    service = server.service
    before = service.options
    page.page.locator("#model option", has_text=before.name).wait_for(state="attached")
    try:
        service.options = replace(before, name="newer")
        page.say("Hello")
        page.page.locator("#notice", has_text="does not exist").wait_for()
        page.page.locator("#model option", has_text="newer").wait_for(state="attached")
        page.page.get_by_role("button", name="Try again").click()
        assert page.answered() == STORY
    finally:
        service.options = before


def test_a_browser_that_keeps_nothing_still_chats(browser: Any, server: Running) -> None:
    opened = browser.new_context()
    page = opened.new_page()
    refuse = "Object.defineProperty(window, '{}', {{ get() {{ throw new Error('refused'); }} }});"
    page.add_init_script("".join(map(refuse.format, ("localStorage", "sessionStorage"))))
    page.goto(server.url)
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    page.locator("article.assistant .figures").wait_for()
    assert page.locator("article.assistant .text").text_content() == STORY
    assert page.locator("#notice").is_hidden()
    opened.close()
