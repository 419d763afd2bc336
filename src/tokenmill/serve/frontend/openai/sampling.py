"""From the fields of a body to checked ``Sampling``: ranges, limits, what we cannot do.

Exists because engines trust what they get. It must not know text, workers or HTTP.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from tokenmill.errors import BadRequest, TooLarge
from tokenmill.protocol.generate import Sampling
from tokenmill.serve.frontend.openai.errors import ContextTooLong
from tokenmill.serve.frontend.openai.schema import Json, SamplingFields

MAX_N = 16
MAX_CHOICES = 128
"""Choices of one request, prompts times n."""
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 256
MAX_CACHE_SALT_CHARS = 256
_CONSTRAINTS = ("response_format", "structured_outputs")
_SEED_MASK = (1 << 63) - 1
_SEED_STEP = 0x9E3779B97F4A7C15
_LARGEST_INT = (1 << 31) - 1
_LARGEST_SHOWN = 10**18


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLimits:
    """In tokens. ``context``: prompt plus output; ``prompt`` and ``output`` 0: what the context leaves."""

    context: int
    prompt: int = 0
    output: int = 0


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise BadRequest where ``value`` is outside ``low`` to ``high``."""
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name} must be from {shown(low)} to {shown(high)}, got {shown(value)}", param=name)


def shown(value: float) -> str:
    """Return a number for a message. JSON's integers have no bound, and Python writes no very large ones."""
    if not isinstance(value, int):
        return f"{value:g}"
    return str(value) if abs(value) < _LARGEST_SHOWN else f"an integer of {value.bit_length()} bits"


def output_tokens(
    prompt_tokens: int,
    asked: int | None,
    default: int | None,
    limits: LengthLimits,
    *,
    field: str = "max_tokens",
    prompt_field: str = "prompt",
) -> int:
    """Return how many tokens may be made. ``default`` None: what is left of the context.

    Raises BadRequest or TooLarge with the numbers in the message, as OpenAI's servers word it.
    """
    if asked is not None and asked < 1:
        raise BadRequest(f"{field} must be at least 1, got {shown(asked)}", param=field)
    if limits.prompt and prompt_tokens > limits.prompt:
        raise TooLarge(
            f"the prompt has {prompt_tokens} tokens; this server takes at most {limits.prompt}",
            param=prompt_field,
        )
    if asked is not None and limits.output and asked > limits.output:
        raise BadRequest(
            f"{field} is {shown(asked)}; this server makes at most {limits.output} tokens", param=field
        )
    left = limits.context - prompt_tokens
    if left < 1:
        raise ContextTooLong(
            f"This model's maximum context length is {limits.context} tokens. However, your prompt has "
            f"{prompt_tokens} tokens, which leaves no room for output. Please shorten the prompt.",
            param=prompt_field,
        )
    if asked is not None and asked > left:
        raise ContextTooLong(
            f"This model's maximum context length is {limits.context} tokens. However, you requested "
            f"{shown(prompt_tokens + asked)} tokens ({prompt_tokens} in the prompt, {shown(asked)} in the "
            f"completion). Please shorten the prompt or lower {field}.",
            param=field,
        )
    if asked is None:
        asked = min(left, default) if default else left
    return min(asked, limits.output) if limits.output else asked


def check_token_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise BadRequest where an id is not in the model's vocabulary."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise BadRequest(f"{name}: token id {shown(token)} is not in 0 to {vocab_size - 1}", param=name)


def stops_of(fields: SamplingFields) -> tuple[str, ...]:
    """Return the stop strings, checked."""
    stop = fields.stop
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"stop: at most {MAX_STOPS} strings, got {len(stops)}", param="stop")
    for item in stops:
        if not 0 < len(item) <= MAX_STOP_CHARS:
            raise BadRequest(f"stop: each string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
    return stops


def choices_of(fields: SamplingFields, prompts: int = 1) -> int:
    """Return ``n``, checked."""
    n = 1 if fields.n is None else fields.n
    check_range("n", n, 1, MAX_N)
    if n * prompts > MAX_CHOICES:
        raise BadRequest(f"prompts times n is {n * prompts}; at most {MAX_CHOICES}", param="n")
    return n


def seed_of(seed: int, choice: int) -> int:
    """Return the seed of the ``choice``-th sequence of a request with ``seed``; 63 bits, distinct."""
    return (seed + choice * _SEED_STEP) & _SEED_MASK


def constraints_of(fields: SamplingFields) -> dict[str, Json]:
    """Return the fields that shape the output, as the client wrote them; they are the engine's business."""
    asked = {name: getattr(fields, name) for name in _CONSTRAINTS}
    return {name: value for name, value in asked.items() if value not in (None, {}, {"type": "text"})}


def check_supported(fields: SamplingFields, constraints: Container[str] = ()) -> None:
    """Raise BadRequest for what we know and cannot do, by name. ``constraints``: what engines understand."""
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise unsupported("best_of", "leave it out or make it equal to n")
    refuse("use_beam_search", fields.use_beam_search)
    refuse("guided_json", fields.guided_json)
    refuse("guided_regex", fields.guided_regex)
    refuse("guided_choice", fields.guided_choice)
    refuse("guided_grammar", fields.guided_grammar)
    for name in constraints_of(fields):
        if name not in constraints:
            fix = (
                'leave it out or set it to {"type": "text"}' if name == "response_format" else "leave it out"
            )
            raise unsupported(name, fix)
    if fields.stream_options is not None and not fields.stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")


def refuse(name: str, value: Json) -> None:
    """Raise BadRequest where ``value`` asks for something."""
    if value not in (None, False, "", [], {}):
        raise unsupported(name, "leave it out")


def unsupported(name: str, fix: str) -> BadRequest:
    """Return the error for a field that we cannot serve."""
    return BadRequest(f"{name} is not supported by this server; {fix}", param=name)


def to_sampling(
    fields: SamplingFields,
    *,
    max_tokens: int,
    seed: int,
    vocab_size: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    constraints: dict[str, Json] | None = None,
) -> Sampling:
    """Return how tokens are chosen. ``constraints``: fields that shape the output, None: the client's. Raises
    BadRequest that names the field."""
    _check(fields, max_tokens, vocab_size)
    top_k = max(0, fields.top_k or 0)
    top_p = 1.0 if fields.top_p is None else fields.top_p
    if top_p == 0.0:  # OpenAI allows it; it leaves the likeliest token alone
        top_k, top_p = 1, 1.0
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens or 0,
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_k=min(top_k, vocab_size),
        top_p=top_p,
        min_p=fields.min_p or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
        seed=seed,
        logit_bias=fields.logit_bias or {},
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        constraints=constraints_of(fields) if constraints is None else constraints,
    )


def _check(fields: SamplingFields, max_tokens: int, vocab_size: int) -> None:
    check_range("temperature", fields.temperature, 0, 2)
    check_range("top_p", fields.top_p, 0, 1)
    check_range("min_p", fields.min_p, 0, 1)
    check_range("top_k", fields.top_k, -1, _LARGEST_INT)
    check_range("presence_penalty", fields.presence_penalty, -2, 2)
    check_range("frequency_penalty", fields.frequency_penalty, -2, 2)
    check_range("repetition_penalty", fields.repetition_penalty, 0.01, 100)
    check_range("priority", fields.priority, -_LARGEST_INT, _LARGEST_INT)
    check_range("min_tokens", fields.min_tokens, 0, max_tokens)
    if len(fields.cache_salt or "") > MAX_CACHE_SALT_CHARS:
        raise BadRequest(f"cache_salt: at most {MAX_CACHE_SALT_CHARS} characters", param="cache_salt")
    if fields.logit_bias:
        if len(fields.logit_bias) > MAX_LOGIT_BIAS:
            raise BadRequest(f"logit_bias: at most {MAX_LOGIT_BIAS} tokens", param="logit_bias")
        check_token_ids("logit_bias", fields.logit_bias, vocab_size)
        for bias in fields.logit_bias.values():
            check_range("logit_bias", bias, -100, 100)
    if fields.stop_token_ids:
        if len(fields.stop_token_ids) > MAX_STOP_TOKENS:
            raise BadRequest(f"stop_token_ids: at most {MAX_STOP_TOKENS} tokens", param="stop_token_ids")
        check_token_ids("stop_token_ids", fields.stop_token_ids, vocab_size)
