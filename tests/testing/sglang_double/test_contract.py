"""What the SGLang double takes, and what it refuses."""

from __future__ import annotations

import msgspec
import pytest

from tokenmill.testing.sglang_double.contract import Asked, Refused, read_generate

GOOD: dict[str, object] = {
    "rid": "r",
    "input_ids": [5, 6, 7],
    "sampling_params": {"max_new_tokens": 4, "temperature": 0, "sampling_seed": 2**63 - 1},
    "stream": True,
}
PAIR = {"bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": 7}


def read(fields: dict[str, object], mode: str = "null") -> Asked:
    body = msgspec.json.encode(fields)
    return read_generate(body, vocab_size=100, context_length=64, mode=mode, bootstrap_port=8998)


def sampling(**fields: object) -> dict[str, object]:
    return {"sampling_params": {"max_new_tokens": 4, **fields}}


def test_a_good_request() -> None:
    asked = read(GOOD)
    assert (asked.rid, asked.input_ids, asked.stream) == ("r", [5, 6, 7], True)
    assert asked.sampling_params.sampling_seed == 2**63 - 1
    assert not asked.for_nobody


BAD: list[tuple[dict[str, object], int, str]] = [
    ({"prompt": "x"}, 400, "unknown field `prompt`"),
    (sampling(max_tokens=4), 400, "unknown field `sampling_params.max_tokens`"),
    ({"input_ids": "5"}, 400, "invalid type of `input_ids`"),
    ({"stream": 1}, 400, "invalid type of `stream`"),
    ({"rid": ""}, 400, "empty rid"),
    ({"input_ids": []}, 400, "cannot be empty"),
    ({"input_ids": [100]}, 500, "device-side assert"),
    ({"input_ids": [-1]}, 500, "device-side assert"),
    ({"input_ids": [5] * 64}, 400, "longer than the model's context"),
    (sampling(max_new_tokens=62), 400, "exceeds the model's maximum context"),
    (sampling(top_k=0), 400, "top_k"),
    (sampling(top_p=0.0), 400, "top_p"),
    (sampling(temperature=-1), 400, "temperature"),
    (sampling(repetition_penalty=2.5), 400, "repetition_penalty"),
    (sampling(min_new_tokens=5), 400, "min_new_tokens"),
    (sampling(sampling_seed=2**63), 400, "sampling_seed"),
    (sampling(logit_bias={"100": 1.0}), 400, "logit_bias"),
    ({"top_logprobs_num": 2}, 400, "without return_logprob"),
    ({"bootstrap_room": 7}, 400, "disaggregated servers only"),
]


@pytest.mark.parametrize(("fields", "status", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_requests(fields: dict[str, object], status: int, message: str) -> None:
    with pytest.raises(Refused) as caught:
        read({**GOOD, **fields})
    assert caught.value.status == status
    assert message in caught.value.message


@pytest.mark.parametrize("missing", ["rid", "input_ids", "sampling_params"])
def test_missing_fields(missing: str) -> None:
    with pytest.raises(Refused, match=f"missing field `{missing}`"):
        read({name: value for name, value in GOOD.items() if name != missing})


def test_no_json() -> None:
    with pytest.raises(Refused, match="no JSON object"):
        read_generate(b"[", vocab_size=9, context_length=9, mode="null", bootstrap_port=0)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_a_pair_needs_its_room(mode: str) -> None:
    assert read({**GOOD, **PAIR}, mode).bootstrap_room == 7
    with pytest.raises(Refused, match="without bootstrap room id"):
        read(GOOD, mode)
    for room in (0, -1, 2**63):
        with pytest.raises(Refused, match="bootstrap_room must be"):
            read({**GOOD, **PAIR, "bootstrap_room": room}, mode)
    with pytest.raises(Refused, match="belong together"):
        read({**GOOD, "bootstrap_room": 7}, mode)


def test_each_side_knows_its_part() -> None:
    with pytest.raises(Refused, match="is not this server's"):
        read({**GOOD, **PAIR, "bootstrap_port": 9}, "prefill")
    nobody = {**GOOD, **PAIR, "bootstrap_host": "2.2.2.2"}
    assert read(nobody, "prefill").for_nobody
    with pytest.raises(Refused, match="a cache that nobody made"):
        read(nobody, "decode")
