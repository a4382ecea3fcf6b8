"""Model folders as they are published: templates by name, end tokens, added tokens, bos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llamaseek.errors import UserError
from llamaseek.text.chat import ChatOptions, encode_chat, format_of
from llamaseek.text.llama3_calls import CHAT_TEMPLATE
from llamaseek.text.tokenizer import StreamDecoder, Tokenizer
from tests.cli.run import Cli
from tests.text.styles import SPELLED, TALK, TOOL, made, say, source, tokenizer

NAMED = [
    {"name": "default", "template": "plain {{ messages[0].content }}"},
    {"name": "tool_use", "template": "tools {{ tools | length }} {{ messages[0].content }}"},
    {"name": "rag", "template": "rag"},
]
HI = [say("user", "Hi")]


def folder(at: Path, style: str = "chatml", **files: Any) -> Path:
    """A folder with a style's tokenizer; `files` are more of its JSON files, by name."""
    made(style, None).save(at)
    for name, content in files.items():
        path = at / f"{name}.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(kept | content))
    return at


def text(ours: Tokenizer, messages: list[dict[str, Any]], **more: Any) -> str:
    """A conversation as its template writes it."""
    return ours.decode(encode_chat(ours, messages, **more).ids, skip_special=False)


def theirs(at: Path) -> Any:
    """transformers' reading of a folder."""
    return AutoTokenizer.from_pretrained(at)


# Templates


def test_named_templates_are_picked_as_in_transformers(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={"chat_template": NAMED})
    ours, peer = Tokenizer.load(tmp_path), theirs(tmp_path)
    for tools in (None, [TOOL]):
        expected = peer.apply_chat_template(HI, tools=tools, tokenize=False)
        assert text(ours, HI, tools=tools) == expected
    assert text(ours, HI, tools=[TOOL]) == "tools 1 Hi" and text(ours, HI) == "plain Hi"


def test_templates_in_files_come_before_the_configs_and_are_kept(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    folder(first, tokenizer_config={"chat_template": "not this one"})
    (first / "chat_template.jinja").write_text(NAMED[0]["template"])
    (first / "additional_chat_templates").mkdir()
    (first / "additional_chat_templates" / "tool_use.jinja").write_text(NAMED[1]["template"])
    Tokenizer.load(first).save(again)
    for place in (first, again):
        ours, peer = Tokenizer.load(place), theirs(place)
        for tools in (None, [TOOL]):
            expected = peer.apply_chat_template(HI, tools=tools, tokenize=False)
            assert text(ours, HI, tools=tools) == expected
    assert "chat_template" not in json.loads((again / "tokenizer_config.json").read_text())


def test_named_templates_without_a_default_are_an_error_that_lists_them(tmp_path: Path) -> None:
    folder(tmp_path, tokenizer_config={"chat_template": NAMED[1:]})
    ours = Tokenizer.load(tmp_path)
    assert text(ours, HI, tools=[TOOL]) == "tools 1 Hi"
    with pytest.raises(UserError, match="has chat templates rag, tool_use, but none named default"):
        encode_chat(ours, HI)


@pytest.mark.parametrize(
    "stored",
    [{"a": 1}, [1], [{"name": "default"}], [{"name": "../x", "template": ""}], 7],
)
def test_a_template_that_is_none_is_an_error(tmp_path: Path, stored: Any) -> None:
    folder(tmp_path, tokenizer_config={"chat_template": stored})
    with pytest.raises(UserError, match=r"tokenizer_config.json: chat_template is neither"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("style", ["llama3", "deepseek_v3", "chatml"])
def test_a_folder_without_a_template_gets_none(tmp_path: Path, cli: Cli, style: str) -> None:
    """Whatever control tokens its tokenizer has: that of a base model was taught no format."""
    folder(tmp_path, style)
    with pytest.raises(UserError, match="has no chat template, so it cannot hold a conversation"):
        encode_chat(Tokenizer.load(tmp_path), HI)
    asked = ("tokenize", "Hi", "-t", str(tmp_path), "--chat", "--ids")
    done = cli(*asked)
    assert done.code == 2 and f"{tmp_path}: has no chat template" in done.err
    name = {"chatml": "chatml"}.get(style, "llama3")
    done = cli(*asked, "--chat-template", name)
    if style == "deepseek_v3":
        assert "chat template llama3: this tokenizer has no token <|eot_id|>" in done.err
    else:
        given = made(style, source(name) if name == "chatml" else CHAT_TEMPLATE)
        assert done.out.split() == list(map(str, encode_chat(given, HI, True).ids))
    done = cli(*asked, "--chat-template", "none.jinja")
    assert "'none.jinja' is not allowed; allowed: llama3, chatml, or the path" in done.err


def test_a_published_template_with_windows_line_breaks_is_known(tmp_path: Path) -> None:
    windows = source("llama3.1").replace("\n", "\r\n")
    folder(tmp_path, "llama3.1", tokenizer_config={"chat_template": windows})
    assert format_of(Tokenizer.load(tmp_path)) == "llama3.1"


# End tokens


def test_the_end_tokens_of_all_files_are_honoured_and_kept(tmp_path: Path) -> None:
    generation = {"eos_token_id": [258, 256], "temperature": 0.2}
    place = folder(tmp_path / "a", generation_config=generation, config={"eos_token_id": 259})
    ours = Tokenizer.load(place)
    assert ours.stop_ids == (257, 258, 256, 259)  # 257 is the tokenizer's own <|im_end|>
    assert ours.generation_config == generation
    (place / "config.json").unlink()
    assert Tokenizer.load(place).stop_ids == (257, 258, 256)
    (place / "config.json").write_text(json.dumps({"eos_token_id": "no"}))
    with pytest.raises(UserError, match=r"config.json: eos_token_id: 'no' is not allowed"):
        Tokenizer.load(place)


def test_what_ends_a_turn_ends_an_answer_whatever_the_configs_say(tmp_path: Path) -> None:
    """As in fine-tunes whose eos is still the base's."""
    place = folder(tmp_path, tokenizer_config={"eos_token": "<|im_start|>"})
    (place / "chat_template.jinja").write_text(source("chatml"))
    ours = Tokenizer.load(place)
    assert ours.end_ids == (256,) and ours.stop_ids == (256, 257)


# Added tokens


def test_added_tokens_that_are_not_special_are_shown_and_still_out_of_reach(tmp_path: Path) -> None:
    ours = tokenizer("chatml")
    ours.save(tmp_path)
    peer = theirs(tmp_path)
    ids = ours.encode_special("<|im_start|>a<tool_call>b</tool_call><|im_end|>")
    assert ours.decode(ids) == "a<tool_call>b</tool_call>" == peer.decode(ids, True)
    stream = StreamDecoder(ours)
    assert "".join(map(stream.push, ids)) + stream.flush() == "a<tool_call>b</tool_call>"
    assert ours.special_ids.isdisjoint(ours.encode("<tool_call><|im_end|>"))
    dec = {"258": {"content": "<tool_call>", "special": True}}
    folder(tmp_path, tokenizer_config={"added_tokens_decoder": dec})
    assert (
        Tokenizer.load(tmp_path).decode(ids)
        == "ab</tool_call>"
        == theirs(tmp_path).decode(ids, skip_special_tokens=True)
    )


def test_tags_are_tokens_in_an_assistants_message_alone() -> None:
    for style in ("chatml", "r1_distill", "deepseek_v3"):
        ours = tokenizer(style)
        tag = "<tool_call>" if style == "chatml" else "<think>"
        token = ours.id_of(tag)
        asked = encode_chat(ours, [say("user", f"{tag}x"), say("assistant", "y")])
        said = encode_chat(ours, [say("user", "x"), say("assistant", f"{tag}y")])
        assert token not in asked.ids and said.ids.count(token) == 1


# Beginnings


@pytest.mark.parametrize("adds", [False, True])
def test_bos_is_put_where_the_post_processor_puts_it(tmp_path: Path, adds: bool) -> None:
    place = folder(tmp_path, "smollm2")
    stored = json.loads((place / "tokenizer.json").read_text())
    template = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}] if adds else []
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*template, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [256],
                                            "tokens": ["<|im_start|>"]}},
    }  # fmt: skip
    (place / "tokenizer.json").write_text(json.dumps(stored))
    ours = Tokenizer.load(place)
    assert ours.bos_id == 256 and ours.prefix_ids == ((256,) if adds else ())
    peer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
    assert [*ours.prefix_ids, *ours.encode("Hi")] == peer.encode("Hi")


# What is asked of a template


def test_kwargs_reach_templates_and_formats() -> None:
    v31 = tokenizer("deepseek_v3.1")
    on = ChatOptions(chat_template_kwargs={"thinking": True})
    assert text(v31, HI, add_generation_prompt=True, options=on).endswith("<｜Assistant｜><think>")
    assert text(v31, HI, add_generation_prompt=True).endswith("<｜Assistant｜><think></think>")
    for form in ("template", None):  # the template itself, and our encoder of it
        dated = ChatOptions(form, chat_template_kwargs={"date_string": "1 May 2031"})
        assert "Today Date: 1 May 2031" in text(tokenizer("llama3.1"), HI, options=dated)
    harmless = ChatOptions(chat_template_kwargs={"enable_thinking": False, "x": None})
    for style in ("chatml", "llama3", "deepseek_v3"):
        assert text(tokenizer(style), HI, options=harmless) == text(tokenizer(style), HI)
        with pytest.raises(UserError, match=r"chat_template_kwargs.thinking: .* not read it"):
            encode_chat(tokenizer(style), HI, options=on)
    for bad in ({"date_string": 3}, {"tools_in_user_message": "no"}):
        with pytest.raises(UserError, match=r"chat_template_kwargs\.\w+: .* is not allowed"):
            encode_chat(tokenizer("llama3.1"), HI, options=ChatOptions(chat_template_kwargs=bad))
    taken = ChatOptions(chat_template_kwargs={"messages": []})
    with pytest.raises(UserError, match="kwargs.messages: has a field of its own"):
        encode_chat(tokenizer("chatml"), HI, options=taken)


def test_kwargs_are_text_to_the_template() -> None:
    ours = made("chatml", "{{ note }}<|im_end|>")
    noted = ChatOptions(chat_template_kwargs={"note": "<|im_end|>"})
    assert encode_chat(ours, HI, options=noted).ids.count(257) == 1


@pytest.mark.parametrize(
    "style", ["chatml", "smollm2", "llama2", "zephyr", "llama3.1", "deepseek_v3.1", "r1_distill"]
)
def test_a_final_message_is_continued_as_in_transformers(tmp_path: Path, style: str) -> None:
    ours = tokenizer(style)
    ours.save(tmp_path)
    peer = theirs(tmp_path)
    options = ChatOptions("template", continue_final_message=True)
    for talk in (TALK, SPELLED, [*HI, say("assistant", "It is ")]):
        expected = peer.apply_chat_template(talk, tokenize=False, continue_final_message=True)
        assert text(ours, talk, options=options) == expected
        known = ChatOptions(continue_final_message=True)
        assert text(ours, talk, options=known) == expected
    with pytest.raises(UserError, match="continue_final_message: needs a conversation that ends"):
        encode_chat(ours, HI, options=options)
    with pytest.raises(UserError, match="cannot be asked for with add_generation_prompt"):
        encode_chat(ours, TALK, True, options=options)


PARTS_ONLY = (
    "{% for m in messages %}<|im_start|>{% for part in m['content'] %}{{ part['text'] }}"
    "{% endfor %}<|im_end|>{% endfor %}"
)
EITHER = (
    "{% for m in messages %}<|im_start|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("template", [source("chatml"), PARTS_ONLY, EITHER])
def test_content_parts_are_given_as_the_template_takes_them(template: str) -> None:
    ours = made("chatml", template)
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "<|im_end|> there"}]
    whole = [say("user", "Hi <|im_end|> there"), say("assistant", "Yes")]
    in_parts = [{"role": "user", "content": parts}, say("assistant", "Yes")]
    found = encode_chat(ours, in_parts, spans=True)
    assert text(ours, in_parts) == text(ours, whole) and "Hi <|im_end|> there" in text(ours, whole)
    assert found.kinds == encode_chat(ours, whole, spans=True).kinds and max(found.kinds) > 0


def test_arguments_are_objects_or_text_as_the_template_takes_them() -> None:
    """Clients send them as text; DeepSeek's templates join that text, others write objects."""
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    asked = [say("user", "?"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    v31, r1 = tokenizer("deepseek_v3.1"), tokenizer("r1_distill")
    assert '<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>' in text(v31, asked)
    assert '```json\n{"x": 1}\n```' in text(r1, asked)
    hermes = text(tokenizer("hermes"), asked, tools=[TOOL])
    assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>' in hermes
