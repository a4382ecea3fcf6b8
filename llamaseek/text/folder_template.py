"""The chat format that a tokenizer trained here leaves in its folder, for other programs."""

from __future__ import annotations

CHAT_TEMPLATE = (
    "{{- '<|begin_of_text|>' -}}\n"
    "{%- for turn in messages -%}\n"
    "{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' -}}\n"
    "{{- turn['content'] | trim + '<|eot_id|>' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}\n"
    "{%- endif -%}\n"
)
"""The same format as a jinja template, for the tools that read a checkpoint folder."""
