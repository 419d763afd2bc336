"""What ``/v1/completions`` takes, field by field, as TensorRT-LLM's request types say. No I/O.

Those types refuse every field that they do not know. Types are checked more strictly than there, where a
number may also be written as text.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping

Check = Callable[[object], bool]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(check(entry) for entry in value)


def _biases(value: object) -> bool:
    return isinstance(value, dict) and all(
        name.isdigit() and _number(bias) and -100 <= bias <= 100 for name, bias in value.items()
    )


def _token_ids(value: object) -> bool:
    """The double takes token ids alone: it has no tokenizer."""
    return isinstance(value, list) and bool(value) and all(_whole(token) for token in value)


COMPLETION: Mapping[str, Check] = {
    "model": _text,
    "prompt": _token_ids,
    "best_of": _or_none(_whole),
    "echo": _or_none(_flag),
    "frequency_penalty": _or_none(_number),
    "logit_bias": _or_none(_biases),
    "logprobs": _or_none(_whole),
    "max_tokens": _or_none(_whole),
    "n": _whole,
    "presence_penalty": _or_none(_number),
    "seed": _or_none(_whole),
    "stop": _or_none(lambda value: _text(value) or _list_of(_text)(value)),
    "stream": _or_none(_flag),
    "stream_options": _or_none(lambda value: isinstance(value, dict)),
    "suffix": _or_none(_text),
    "temperature": _or_none(_number),
    "top_p": _or_none(_number),
    "user": _or_none(_text),
    "lora_request": _or_none(lambda value: isinstance(value, dict)),
    "prompt_ignore_length": _or_none(_whole),
    "use_beam_search": _flag,
    "top_k": _whole,
    "top_p_min": _number,
    "min_p": _number,
    "repetition_penalty": _number,
    "length_penalty": _or_none(_number),
    "early_stopping": _or_none(lambda value: _flag(value) or value == "never"),
    "stop_token_ids": _or_none(_list_of(_whole)),
    "include_stop_str_in_output": _flag,
    "ignore_eos": _flag,
    "min_tokens": _whole,
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
    "truncate_prompt_tokens": _or_none(_whole),
    "return_context_logits": _flag,
    "detokenize": _flag,
    "thinking_token_budget": _or_none(_whole),
    "add_special_tokens": _flag,
    "response_format": _or_none(lambda value: isinstance(value, dict)),
    "disaggregated_params": _or_none(lambda value: isinstance(value, dict)),
    "priority": _or_none(lambda value: _number(value) and 0 <= value <= 1),  # type: ignore[operator]
    "conversation_params": _or_none(lambda value: isinstance(value, dict)),
}

STREAM_OPTIONS: Mapping[str, Check] = {
    "include_usage": _or_none(_flag),
    "continuous_usage_stats": _or_none(_flag),
}

DISAGGREGATED: Mapping[str, Check] = {
    "request_type": _text,
    "first_gen_tokens": _or_none(_list_of(_whole)),
    "first_gen_log_probs": _or_none(lambda value: isinstance(value, list)),
    "first_gen_logits": _or_none(lambda value: isinstance(value, list)),
    "ctx_request_id": _or_none(_whole),
    "encoded_opaque_state": _or_none(_text),
    "draft_tokens": _or_none(_list_of(_whole)),
    "disagg_request_id": _or_none(_whole),
    "ctx_dp_rank": _or_none(_whole),
    "ctx_info_endpoint": _or_none(_text),
    "schedule_style": _or_none(_whole),
    "ctx_usage": _or_none(lambda value: isinstance(value, dict)),
}

OLD_DISAGGREGATED: Mapping[str, Check] = {
    name: DISAGGREGATED[name]
    for name in ("request_type", "first_gen_tokens", "ctx_request_id", "encoded_opaque_state", "draft_tokens")
}
"""Before ids were given by the orchestrator."""

REQUEST_TYPES = ("context_only", "generation_only", "context_and_generation")


class Refused(Exception):
    """The request is wrong: 400."""


def check_completion(body: object, disaggregated: Mapping[str, Check]) -> dict[str, object]:
    """Return the request's fields. Raises Refused with the words of the field at fault."""
    fields = _object(body, "request")
    _check(fields, COMPLETION, "")
    for name in ("model", "prompt"):
        if name not in fields:
            raise Refused(f"{name}: Field required")
    options = fields.get("stream_options")
    if options is not None:
        if not fields.get("stream"):
            raise Refused("Stream options can only be defined when stream is true.")
        _check(_object(options, "stream_options"), STREAM_OPTIONS, "stream_options.")
    if fields.get("suffix"):
        raise Refused("suffix is not supported")
    params = fields.get("disaggregated_params")
    if params is not None:
        check_params(_object(params, "disaggregated_params"), disaggregated)
    return fields


def check_params(params: dict[str, object], known: Mapping[str, Check]) -> None:
    """Check the parameters of a prefill or decode alone. Raises Refused."""
    _check(params, known, "disaggregated_params.")
    kind = params.get("request_type")
    if kind not in REQUEST_TYPES:
        raise Refused(
            f"Unknown request type: {kind}. Must be context_only, generation_only or context_and_generation"
        )
    if kind == "generation_only":
        for name in ("first_gen_tokens", "ctx_request_id", "encoded_opaque_state"):
            if params.get(name) in (None, []):
                raise Refused(f"generation_only needs {name}")
        try:
            base64.b64decode(str(params["encoded_opaque_state"]), validate=True)
        except binascii.Error as error:
            raise Refused(f"encoded_opaque_state: {error}") from error
    elif any(params.get(name) is not None for name in ("first_gen_tokens", "encoded_opaque_state")):
        raise Refused(f"{kind} with the state of a prefill")


def openapi(disaggregated: Mapping[str, Check]) -> dict[str, object]:
    """Return the part of ``/openapi.json`` that names the fields."""
    schemas = {"CompletionRequest": COMPLETION, "DisaggregatedParams": disaggregated}
    return {
        "openapi": "3.1.0",
        "components": {
            "schemas": {
                name: {"type": "object", "properties": {field: {} for field in fields}}
                for name, fields in schemas.items()
            }
        },
    }


def _object(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Refused(f"{name}: Input should be a valid dictionary")
    return value


def _check(fields: Mapping[str, object], known: Mapping[str, Check], place: str) -> None:
    """All unknown fields are told at once."""
    unknown = [f"{place}{name}: Extra inputs are not permitted" for name in fields if name not in known]
    if unknown:
        raise Refused("; ".join(unknown))
    for name, value in fields.items():
        if not known[name](value):
            raise Refused(f"{place}{name}: Input is not valid: {value!r}"[:300])
