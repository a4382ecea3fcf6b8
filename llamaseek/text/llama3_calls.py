"""Llama 3's tool calls and tool definitions: three forms, all published.

`models/llama3_1/prompt_format.md` and `models/llama3_2/text_prompt_format.md` of llama-models;
`json` also as in the chat templates of the checkpoints on Hugging Face.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llamaseek.errors import UserError, bad_value
from llamaseek.text.messages import ToolCall, to_json

FORMS = ("json", "python_list", "function_tag")

HF_FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name'
    " and its value}.Do not use variables.\n\n"
)
HF_IN_USER = (
    "Given the following functions, please respond with a JSON for a function call with its"
    " proper arguments that best answers the given prompt.\n\n" + HF_FORMAT
)
HF_IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON"
    " for a function call." + HF_FORMAT
)
JSON_PROMPT = """\
Answer the user's question by making use of the following functions if needed.
If none of the function can be used, please say so.
Here is a list of functions in JSON format:
{tools}

Return function calls in JSON format."""
LIST_PROMPT = """\
You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters \
required by the function,
also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.

{tools}"""
TAG_PROMPT = """\
You have access to the following functions:

{tools}

Think very carefully before calling functions.
If you choose to call a function ONLY reply in the following format with no prefix or suffix:

<function=example_function_name>{{"example_name": "example_value"}}</function>

Reminder:
- If looking for real time information use relevant functions before falling back to brave_search
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line"""


def hf_tools(tools: Sequence[Mapping[str, Any]], in_user_message: bool) -> str:
    """The definitions as the templates on Hugging Face put them before a message."""
    listed = "".join(to_json(tool, indent=4) + "\n\n" for tool in tools)
    return (HF_IN_USER if in_user_message else HF_IN_SYSTEM) + listed


def meta_tools(tools: Sequence[Mapping[str, Any]], form: str) -> str:
    """The definitions in the words of Meta's documentation of `form`."""
    if form == "json":
        return JSON_PROMPT.format(tools="\n".join(to_json(tool, indent=4) for tool in tools))
    inner = [tool.get("function", tool) for tool in tools]
    if form == "python_list":
        return LIST_PROMPT.format(tools=to_json(inner, indent=4))
    uses = [f"Use the function '{f['name']}' to '{f.get('description', '')}':" for f in inner]
    listed = [f"{use}\n{to_json(f)}" for use, f in zip(uses, inner, strict=True)]
    return TAG_PROMPT.format(tools="\n\n".join(listed))


def write_calls(calls: Sequence[ToolCall], form: str, typed: bool) -> str:
    """Calls of tools that a user defined. `typed` is Meta's own spelling of JSON calls.

    Several JSON calls have `; ` between them, as vLLM's parser and ours read them; the published
    templates have no form for them. Raises UserError for several where the form holds but one.
    """
    if form == "python_list":
        return "[" + ", ".join(_python(call) for call in calls) + "]"
    if form == "json":
        return "; ".join(_json(call, typed) for call in calls)
    if len(calls) > 1:
        raise UserError(
            f"tool_calls: {len(calls)} calls in one message; Llama 3's {form} form holds one,"
            " its json and python_list forms several"
        )
    return f"<function={calls[0].name}>{json.dumps(calls[0].arguments)}</function>"


def _json(call: ToolCall, typed: bool) -> str:
    if typed:
        return json.dumps({"type": "function", "name": call.name, "parameters": call.arguments})
    return to_json({"name": call.name, "parameters": call.arguments})


def write_built_in(call: ToolCall) -> str:
    """`brave_search.call(query="…")`; the code interpreter's call is its code."""
    given = call.arguments
    if call.name == "code_interpreter":
        code = given.get("code")
        if not isinstance(code, str):
            raise UserError("tool_calls: code_interpreter takes one argument, code, a string")
        return code
    values = [(k, v if isinstance(v, str) else to_json(v)) for k, v in given.items()]
    return f"{call.name}.call(" + ", ".join(f'{k}="{v}"' for k, v in values) + ")"


def _python(call: ToolCall) -> str:
    given = ", ".join(f"{name}={_literal(value)}" for name, value in call.arguments.items())
    return f"{call.name}({given})"


def _literal(value: Any) -> str:
    """A value in Python, strings in double quotes as Meta writes them."""
    return to_json(value) if isinstance(value, str) else repr(value)


CHAT_TEMPLATE = (
    """\
{{- '<|begin_of_text|>' -}}
{%- set ns = namespace(tools=tools if tools is defined and tools else none) -%}
{%- for turn in messages -%}
{%- set role = 'ipython' if turn['role'] == 'tool' else turn['role'] -%}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
{%- if ns.tools and role != 'system' -%}
{%- if role != 'user' -%}
{{- raise_exception('tools are put into the first user message, and there is none') -}}
{%- endif -%}
{{- '"""
    + HF_IN_USER.replace("\n", "\\n")
    + """' -}}
{%- for tool in ns.tools -%}
{{- tool | tojson(indent=4) + '\\n\\n' -}}
{%- endfor -%}
{%- set ns.tools = none -%}
{%- endif -%}
{%- if turn['content'] is string -%}
{{- turn['content'] | trim -}}
{%- elif turn['content'] is not none -%}
{{- turn['content'] | tojson -}}
{%- endif -%}
{%- if turn['tool_calls'] is defined and turn['tool_calls'] -%}
{%- if turn['tool_calls'] | length > 1 -%}
{{- raise_exception('one message holds one call') -}}
{%- endif -%}
{%- set call = turn['tool_calls'][0]['function'] -%}
{{- '{"name": ' + call['name'] | tojson + ', "parameters": ' -}}
{{- call['arguments'] if call['arguments'] is string else call['arguments'] | tojson -}}
{{- '}' -}}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
)
"""The variant `llama3` of `llamaseek.text.llama3_chat` as a jinja template."""


OPTION_KWARGS: dict[str, tuple[type, str]] = {
    "date_string": (str, "date"),
    "builtin_tools": (list, "built_in_tools"),
    "tools_in_user_message": (bool, "tools_in_user_message"),
}
"""What Meta's templates read by name: the type, and the option of the same meaning."""


@dataclass(frozen=True)
class ChatOptions:
    """How to write a conversation. Only `format` concerns DeepSeek-V3; the rest is Llama 3's.

    `format`: a name of `llamaseek.text.chat.FORMATS`; None is the tokenizer's own.
    `date`: the day after `Today Date:`, as `26 Jul 2024`; None is the format's own.
    `built_in_tools`: turns the ipython environment on, and names what it has besides code
    (`brave_search`, `wolfram_alpha`); None leaves it off.
    `tools_in_user_message`: definitions before the first user message, else in the system's.
    `call_form`: `json`, or Llama 3.2's `python_list`, or `function_tag`.
    `chat_template_kwargs`: what the template itself reads by these names, as in transformers and
    vLLM (`thinking`, `date_string`, …).
    `continue_final_message`: the last message, an assistant's, is left open to be continued.
    Raises UserError for a form that does not exist.
    """

    format: str | None = None
    date: str | None = None
    built_in_tools: tuple[str, ...] | None = None
    tools_in_user_message: bool = True
    call_form: str = "json"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        if self.call_form not in FORMS:
            raise bad_value("call_form", self.call_form, ", ".join(FORMS))

    def understood(self, names: Sequence[str]) -> ChatOptions:
        """With `chat_template_kwargs` as the options of the same meaning.

        `names` are those that the format reads, of OPTION_KWARGS. UserError for others, unless
        they turn something off, and for values of another type.
        """
        found: dict[str, Any] = {}
        for name, value in self.chat_template_kwargs.items():
            where = f"chat_template_kwargs.{name}"
            if name in names and value is not None:
                kind, option = OPTION_KWARGS[name]
                if not isinstance(value, kind):
                    raise bad_value(where, value, f"a {kind.__name__}")
                found[option] = tuple(value) if isinstance(value, list) else value
            elif value:
                raise UserError(f"{where}: this model's chat format does not read it")
        return replace(self, chat_template_kwargs={}, **found)
