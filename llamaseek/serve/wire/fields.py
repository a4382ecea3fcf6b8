"""The fields of requests. A field that is not listed here is an error that names it.

Names and ranges are OpenAI's; `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, and
how the chat template is rendered, which that API lacks, are called as in vLLM, and
`logprob_start_len` as in SGLang.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

LARGEST = 2**31 - 1
Text = Annotated[str, StringConstraints(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Prompts = str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
"""Lists stop at the first thing that is wrong with them: there may be many thousands."""
Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
MaxTokens = Annotated[int, Field(ge=-1, le=LARGEST)]
"""-1 is as many as the context allows, as in llama.cpp."""
IDLE: dict[str, tuple[Any, ...]] = {
    "include_obfuscation": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default", "standard_only"),
    "allowed_callers": (["direct"],),
    "background": (False,),
    "defer_loading": (False,),
    "eager_input_streaming": (False, True),
    "mirostat": (0,),
    "raw": (False,),
    "skip_special_tokens": (True,),
    "store": (False,),
    "think": (False,),
    "truncation": ("disabled",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Fields that are not supported, and their values that ask for nothing, which clients send."""


class Strict(BaseModel):
    """No conversions, no NaN, and no unknown fields but those that ask for nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_idle(cls, given: Any) -> Any:
        """Many clients send what they do not ask for: null, empty, or as it is anyway."""
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {n: each for n, each in given.items() if n in known or not is_idle(n, each)}


def is_idle(name: str, value: Any) -> bool:
    """Whether a field that is not supported asks for nothing."""
    if value is None or value in ("", []):
        return True
    return any(type(value) is type(each) and value == each for each in IDLE.get(name, ()))


class StreamOptions(Strict):
    """Whether the last event of a stream counts tokens."""

    include_usage: bool = False


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaOf(Strict):
    """A JSON schema with its name."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool | None = None


class JsonSchema(Strict):
    """JSON that conforms to a schema; it always does here, `strict` or not."""

    type: Literal["json_schema"]
    json_schema: SchemaOf


class RegexFormat(Strict):
    """Text that a regular expression matches as a whole."""

    type: Literal["regex"]
    regex: Text


class GrammarFormat(Strict):
    """Text of a Lark grammar."""

    type: Literal["lark"]
    lark: Text


ResponseFormat = Annotated[
    TextFormat | JsonObject | JsonSchema | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
]


class Sampled(Strict):
    """What the protocols have in common: which model, how it samples, and for whom."""

    model: str
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop: str | Texts | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def salt(self) -> str:
        """Who shares cached prefixes: `user`, or by OpenAI's newer names of it."""
        given = (self.user, self.safety_identifier, self.prompt_cache_key)
        return next((each for each in given if each), "")


class SamplingFields(Sampled):
    """Sampling and stop fields of both of OpenAI's older kinds of generation."""

    max_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None


class CompletionFields(SamplingFields):
    """The body of `/v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    logprob_start_len: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None


class FunctionOf(Strict):
    """A function that the model may call; `strict` holds its calls to `parameters`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool of OpenAI's only kind here."""

    type: Literal["function"]
    function: FunctionOf


class NamedFunction(Strict):
    """A function by its name."""

    name: str


class NamedTool(Strict):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatFields(SamplingFields):
    """The body of `/v1/chat/completions`. Messages are read by `llamaseek.text.messages`."""

    messages: Annotated[Messages, Field(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: Annotated[list[Tool], Field(max_length=1024, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class EmbeddingFields(Strict):
    """The body of `/v1/embeddings`."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class ScoreFields(Strict):
    """The body of `/v1/score`, as vLLM's: questions and answers, or one question and answers."""

    model: str
    text_1: str | Texts
    text_2: str | Texts
    user: str | None = None


class TokenizeFields(Strict):
    """The body of `/tokenize`: a text, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class DetokenizeFields(Strict):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: TokenIds


class InternalsFields(Strict):
    """The body of `/internals`: a conversation, its answer's tokens, what of it is wanted.

    `answer` has the tokens' texts as `logprobs` writes them; `token` counts from 0 over the
    conversation and the answer, `layer` from 0.
    """

    model: str
    messages: Annotated[Messages, Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=1024, fail_fast=True)] | None = None
    answer: Texts = []
    token: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    layer: Annotated[int, Field(ge=0, le=LARGEST)] = 0
