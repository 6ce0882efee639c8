"""What clients may send: the OpenAI requests as far as herd honours them, and nothing that it would silently drop.

Fields that can't change an answer (`user`, `metadata`, ...) are taken and not used; unknown ones are refused. Lists end
at their first mistake and objects have few keys: else a body of 4 MiB makes millions of error reports.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Number = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]
MOST_CHOICES = 128
_MOST_KEYS = 1024
T = TypeVar("T")
Listed = Annotated[list[T], Field(fail_fast=True)]


def _few_keys(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MOST_KEYS:
        raise ValueError(f"more than {_MOST_KEYS} keys")
    return value


Few = BeforeValidator(_few_keys)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class _Loose(BaseModel):
    # clients send whole messages back, with fields of all versions of the API
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


class TextPart(_Loose):
    """One part of a content list: only text is understood."""

    type: Literal["text"]
    text: Text


class CalledFunction(_Loose):
    """The function of an earlier call; `arguments` is JSON in a string."""

    name: Text
    arguments: Text = ""


class EarlierCall(_Loose):
    """A call that the assistant made in an earlier turn."""

    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Loose):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Listed[TextPart] | None = None
    tool_calls: Listed[EarlierCall] | None = None


class Function(_Model):
    """A function on offer; `parameters` is a JSON schema. `strict`: a call keeps to it even where none is required."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class ToolOnOffer(_Model):
    """A tool on offer."""

    type: Literal["function"]
    function: Function


class ChosenFunction(_Model):
    """The name in a named tool choice."""

    name: Text


class NamedChoice(_Model):
    """A tool choice that names the function."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(_Model):
    """A schema for the answer. The answer keeps to it whether or not `strict` asks for that."""

    name: Name
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: Flag | None = None


class ResponseFormat(_Model):
    """What kind of text the answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Model):
    """What a stream also carries."""

    include_usage: Flag | None = None
    include_obfuscation: Flag | None = None


class _Generation(_Model):
    @model_validator(mode="before")
    @classmethod
    def _has_few_keys(cls, value: Any) -> Any:
        return _few_keys(value)

    model: Text
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    n: Whole | None = Field(default=None, ge=1, le=MOST_CHOICES)
    seed: Whole | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None, Few] = None
    stop: Stop | Annotated[Listed[Stop], Field(max_length=16)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    # beyond the API, by the names that other servers use
    top_k: Whole | None = Field(default=None, ge=0)
    min_p: Number | None = Field(default=None, ge=0, le=1)
    repetition_penalty: Number | None = Field(default=None, gt=0, le=100)
    # these can't change an answer here
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_streamed(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Listed[ChatMessage] = Field(min_length=1)
    max_tokens: Whole | None = Field(default=None, ge=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    logprobs: Flag | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    tools: Annotated[Listed[ToolOnOffer], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: Flag | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(_Generation):
    """POST /v1/completions: text, or ids, that the model goes on from."""

    prompt: Text | Listed[Text] | Listed[Whole] | Listed[Listed[Whole]]
    max_tokens: Whole | None = Field(default=16, ge=0)
    logprobs: Whole | None = Field(default=None, ge=0, le=5)
    echo: Flag | None = None
