"""The special tokens of both families, and the order in which Llama 3's follow the vocabulary."""

from __future__ import annotations

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
PYTHON_TAG = "<|python_tag|>"

MASK = "<|reserved_special_token_0|>"
"""The token that hides a word in masked-language-model training; Llama 3 leaves it unused."""

MASK_WORD = "[MASK]"
"""How a hidden word is written in the text that `fill` completes."""

SPECIAL_TOKENS: tuple[str, ...] = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    MASK,
    "<|reserved_special_token_1|>",
    PAD,
    "<|reserved_special_token_2|>",
    START_HEADER,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    PYTHON_TAG,
)
"""Ids base+0 … base+10. In Meta's tokenizer the base is 128,000 and 245 reserved ones follow."""

_OF_LLAMA_3_0 = {
    0: BEGIN_OF_TEXT,
    1: END_OF_TEXT,
    6: START_HEADER,
    7: END_HEADER,
    9: END_OF_TURN,
}


def llama3_names(release: str = "3.1") -> tuple[str, ...]:
    """The 256 names, in the order of their ids, of release "3.0" or of "3.1" and all later ones.

    As in the tokenizer.json that Meta published with each; the ids of the tokens that both have
    are the same, but 3.0 has no name for padding, for the end of a message and for a call.
    """
    named = dict(enumerate(SPECIAL_TOKENS)) if release != "3.0" else _OF_LLAMA_3_0
    taken = set(named.values())
    reserved = (f"<|reserved_special_token_{n}|>" for n in range(256))
    spare = (name for name in reserved if name not in taken)
    return tuple(named[i] if i in named else next(spare) for i in range(256))


BUILT_IN_TOOLS = ("brave_search", "wolfram_alpha", "photogen", "code_interpreter")
"""The tools that Llama 3.1 was taught by name."""

THINK, END_THINK = "<think>", "</think>"
ASSISTANT_TAGS = frozenset({THINK, END_THINK, "<tool_call>", "</tool_call>"})
"""What assistants write themselves: in their messages these texts are tokens, where there are such
tokens. In anyone else's they are text."""

# DeepSeek-V3: the bars are U+FF5C, the blanks U+2581.
SENTENCE_BEGIN = "<｜begin▁of▁sentence｜>"
SENTENCE_END = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
CALL_SEP = "<｜tool▁sep｜>"
OUTPUTS_BEGIN = "<｜tool▁outputs▁begin｜>"
OUTPUTS_END = "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN = "<｜tool▁output▁begin｜>"
OUTPUT_END = "<｜tool▁output▁end｜>"

FIM_BEGIN = "<｜fim▁begin｜>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_END = "<｜fim▁end｜>"

FIM_TOKENS = (
    (FIM_BEGIN, FIM_HOLE, FIM_END),
    tuple(f"<|reserved_special_token_{n}|>" for n in (3, 4, 5)),
)
"""What opens prefix, suffix and middle: DeepSeek's tokens, or three that Llama leaves free."""
