"""What ``/generate`` takes, field by field, and what SGLang answers to what it does not take. No I/O.

Stricter than SGLang in one thing: a field that SGLang would ignore is refused, since nobody can mean it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

FAKE_HOST = "2.2.2.2"

_INT64 = 2**63

_FIELDS: Mapping[str, type] = {
    "rid": str,
    "input_ids": list,
    "sampling_params": dict,
    "stream": bool,
    "return_logprob": bool,
    "logprob_start_len": int,
    "top_logprobs_num": int,
    "cache_salt": str,
    "extra_key": str,
    "routed_dp_rank": int,
    "bootstrap_host": str,
    "bootstrap_port": int,
    "bootstrap_room": int,
}

_SAMPLING: Mapping[str, type] = {
    "max_new_tokens": int,
    "min_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
    "stop_token_ids": list,
    "ignore_eos": bool,
    "skip_special_tokens": bool,
    "logit_bias": dict,
    "sampling_seed": int,
    "json_schema": str,
    "regex": str,
    "ebnf": str,
    "structural_tag": str,
}

_RANGES = {
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-9, 2.0),
    "temperature": (0.0, 1e9),
}


class Refused(Exception):
    """The request is not taken. ``body``: the answer's JSON."""

    def __init__(self, status: int, message: str, body: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.body = body if body is not None else {"error": {"message": message}}


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """``sampling_params``."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: dict[str, float] = {}
    sampling_seed: int = 42
    json_schema: str = ""
    regex: str = ""
    ebnf: str = ""
    structural_tag: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was taken."""

    rid: str
    input_ids: list[int]
    sampling_params: Params
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    cache_salt: str = ""
    extra_key: str = ""
    bootstrap_host: str = ""
    bootstrap_port: int = 0
    bootstrap_room: int | None = None

    @property
    def for_nobody(self) -> bool:
        """A prefill that is handed over to nobody."""
        return self.bootstrap_host == FAKE_HOST


def read_generate(
    body: bytes, *, vocab_size: int, context_length: int, mode: str, bootstrap_port: int
) -> Asked:
    """Return what is asked for. Raises Refused."""
    try:
        raw = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise Refused(400, f"no JSON object: {error}") from error
    _check_types(raw, _FIELDS, "")
    for needed in ("rid", "input_ids", "sampling_params"):
        if needed not in raw:
            raise Refused(400, f"missing field `{needed}`")
    params = raw["sampling_params"]
    assert isinstance(params, dict)
    _check_types(params, _SAMPLING, "sampling_params.")
    asked = msgspec.convert(raw, Asked)
    _check_prompt(asked, vocab_size, context_length)
    _check_sampling(asked.sampling_params, vocab_size)
    _check_pairing(raw, asked, mode, bootstrap_port)
    if raw.get("routed_dp_rank", 0) != 0:
        raise Refused(400, "routed_dp_rank must be in [0, 1): the double has one rank")
    if not asked.return_logprob and ("logprob_start_len" in raw or asked.top_logprobs_num):
        raise Refused(400, "logprob fields without return_logprob")
    return asked


def _check_types(raw: Mapping[str, object], known: Mapping[str, type], prefix: str) -> None:
    for name, value in raw.items():
        kind = known.get(name)
        if kind is None:
            listed = ", ".join(f"`{each}`" for each in known)
            message = f"unknown field `{prefix}{name}`, expected one of {listed}"
            raise Refused(400, message, {"error": message})
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            message = f"invalid type of `{prefix}{name}`: {type(value).__name__}, expected {kind.__name__}"
            raise Refused(400, message, {"error": message})


def _check_prompt(asked: Asked, vocab_size: int, context_length: int) -> None:
    count = len(asked.input_ids)
    if not count:
        raise Refused(400, "input_ids cannot be empty.")
    if not asked.rid:
        raise Refused(400, "an empty rid would abort everybody")
    if any(not 0 <= token < vocab_size for token in asked.input_ids):
        raise Refused(500, "CUDA error: device-side assert triggered")
    if count >= context_length:
        message = (
            f"The input ({count} tokens) is longer than the model's context length ({context_length} tokens)."
        )
        raise Refused(400, message)
    if count + asked.sampling_params.max_new_tokens > context_length:
        message = (
            f"Requested token count exceeds the model's maximum context length of {context_length} tokens."
        )
        raise Refused(400, message)


def _check_sampling(params: Params, vocab_size: int) -> None:
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(params, name) <= high:
            raise Refused(400, f"{name} must be in [{low}, {high}], got {getattr(params, name)}.")
    if params.top_k < 1 and params.top_k != -1:
        raise Refused(400, f"top_k must be -1 (disable) or at least 1, got {params.top_k}.")
    if not 0 <= params.min_new_tokens <= params.max_new_tokens:
        raise Refused(400, f"min_new_tokens must be in [0, max_new_tokens], got {params.min_new_tokens}.")
    if not -_INT64 <= params.sampling_seed < _INT64:
        raise Refused(400, f"sampling_seed must be in [-2**63, 2**63 - 1], got {params.sampling_seed}.")
    if sum(map(bool, (params.json_schema, params.regex, params.ebnf, params.structural_tag))) > 1:
        raise Refused(400, "Only one of json_schema, regex, ebnf, or structural_tag can be set.")
    if any(not key.isdecimal() or int(key) >= vocab_size for key in params.logit_bias):
        raise Refused(400, "logit_bias must have keys in the vocabulary")


def _check_pairing(raw: Mapping[str, object], asked: Asked, mode: str, bootstrap_port: int) -> None:
    given = [name for name in ("bootstrap_host", "bootstrap_port", "bootstrap_room") if name in raw]
    if mode == "null":
        if given:
            raise Refused(400, f"{given[0]} is of use to disaggregated servers only")
        return
    room = asked.bootstrap_room
    if room is None:
        text = f"Invalid request: Disaggregated request received without bootstrap room id. {asked.rid}"
        raise Refused(400, text)
    if len(given) != 3:
        raise Refused(400, f"bootstrap_host, bootstrap_port and bootstrap_room belong together, got {given}")
    if not 0 < room < _INT64:
        raise Refused(400, f"bootstrap_room must be in [1, 2**63 - 1], got {room}")
    if mode == "prefill" and not asked.for_nobody and asked.bootstrap_port != bootstrap_port:
        raise Refused(400, f"bootstrap_port {asked.bootstrap_port} is not this server's, {bootstrap_port}")
    if mode == "decode" and asked.for_nobody:
        raise Refused(400, "a decode server would go on with a cache that nobody made")
