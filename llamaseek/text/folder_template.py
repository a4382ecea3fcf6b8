"""The chat format that a tokenizer trained here leaves in its folder, for other programs."""

from __future__ import annotations

from llamaseek.text.llama3_calls import HF_IN_USER

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
