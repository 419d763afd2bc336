"""Framing: any split of the bytes, any garbage; descriptors that lie."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import HandoffFailed, ProtocolError
from tokenmill.serve.transfer import control
from tokenmill.serve.transfer.base import KvLayout

MESSAGES = [
    control.Open(3, b"t" * 16, need_fd=True),
    control.Beat(),
    control.Fetch(0, 100),
    control.Check(5, 9),
    control.Release(),
    control.Opened(fd=False),
    control.Refused("no"),
    control.Ready(16),
    control.Sealed(b"meta" * 1000),
    control.Withdrawn("gone"),
    control.Data(1 << 40),
    control.Digest((1 << 64) - 1),
    control.Released(valid=True),
]


@given(st.lists(st.integers(1, 500), min_size=1))
def test_messages_survive_any_split(sizes):
    wire = b"".join(control.encode_frame(message) for message in MESSAGES)
    reader = control.FrameReader()
    found, turn = [], 0
    while wire:
        limit = min(reader.wanted, sizes[turn % len(sizes)])
        message = reader.receive_data(wire[:limit])
        wire, turn = wire[limit:], turn + 1
        if message is not None:
            found.append(message)
    assert found == MESSAGES


def test_reading_never_goes_past_a_frame():
    wire = control.encode_frame(control.Data(7)) + b"rawdata"
    reader = control.FrameReader()
    message = None
    while message is None:
        wanted = reader.wanted
        message = reader.receive_data(wire[:wanted])
        wire = wire[wanted:]
    assert wire == b"rawdata"


@given(st.binary(min_size=8, max_size=200))
def test_garbage_is_a_protocol_error_or_a_message(garbage):
    reader = control.FrameReader()
    try:
        while garbage:
            wanted = reader.wanted
            assert wanted > 0
            reader.receive_data(garbage[:wanted])
            garbage = garbage[wanted:]
    except ProtocolError:
        pass


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"GET "])
def test_impossible_lengths_are_refused_before_anything_is_buffered(head):
    with pytest.raises(ProtocolError):
        control.FrameReader().receive_data(head)


def test_a_message_beyond_the_limit_is_not_sent():
    with pytest.raises(ProtocolError):
        control.encode_frame(control.Sealed(bytes(control.MAX_FRAME_BYTES)))


TICKET = control.Ticket(
    version=control.VERSION,
    endpoints=[("shm", "a|b")],
    memory=b"m" * 16,
    memory_blocks=8,
    layout=KvLayout(2, 16, 64, "float32"),
    export=1,
    token=b"t" * 16,
    blocks=[7, 0],
    tokens=32,
    lease_s=1.0,
)


def test_a_descriptor_comes_back():
    assert control.decode_ticket(control.encode_ticket(TICKET)) == TICKET


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"tokens": 33}, {"blocks": [8, 0]}, {"blocks": [-1, 0]}, {"memory_blocks": 7}],
)
def test_a_descriptor_that_contradicts_itself_is_refused(change):
    with pytest.raises(HandoffFailed):
        control.decode_ticket(control.encode_ticket(msgspec.structs.replace(TICKET, **change)))


@given(st.binary(max_size=60))
def test_a_foreign_descriptor_is_refused(descriptor):
    with pytest.raises(HandoffFailed):
        control.decode_ticket(descriptor)
