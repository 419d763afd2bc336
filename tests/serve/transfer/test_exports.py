"""The state machine of exports and leases, under virtual time."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from tokenmill.serve.transfer import control
from tokenmill.serve.transfer.exports import (
    Advanced,
    ExportTable,
    Free,
    OwnerSealed,
    OwnerWithdrew,
    ReaderBeat,
    ReaderJoined,
    ReaderLost,
    ReaderOpened,
    ReaderReleased,
    Send,
    TimePassed,
)

LEASE_S = 10.0


@pytest.fixture
def table():
    return ExportTable()


@pytest.fixture
def entry(table):
    return table.add([4, 2], 32, LEASE_S)


def opened(entry, connection=1, *, token=None, need_fd=False):
    return ReaderOpened(connection, entry.export, token or entry.token, need_fd)


def test_news_reaches_a_reader_in_order(table, entry):
    assert table.handle(Advanced(entry.export, 8), 0) == []
    assert table.handle(opened(entry), 1) == [Send(1, control.Opened(fd=False)), Send(1, control.Ready(8))]
    assert table.handle(Advanced(entry.export, 20), 2) == [Send(1, control.Ready(20))]
    assert table.handle(Advanced(entry.export, 10), 2) == []
    assert table.handle(OwnerSealed(entry.export, b"m"), 3) == [Send(1, control.Sealed(b"m"))]
    assert table.handle(ReaderReleased(1), 4) == [
        Send(1, control.Released(valid=True)),
        Free(entry.export, taken=True),
    ]
    assert table.next_deadline() is None


def test_a_late_reader_is_told_at_once(table, entry):
    table.handle(OwnerSealed(entry.export, b"m"), 0)
    assert table.handle(opened(entry), 1) == [
        Send(1, control.Opened(fd=False)),
        Send(1, control.Sealed(b"m")),
    ]


def test_the_descriptor_goes_along_only_when_wanted_and_shared():
    table = ExportTable(shares_fd=True)
    answer = table.handle(opened(table.add([0], 1, LEASE_S), need_fd=True), 0)
    assert answer == [Send(1, control.Opened(fd=True), with_fd=True)]
    answer = table.handle(opened(table.add([0], 1, LEASE_S), 2), 0)
    assert answer == [Send(2, control.Opened(fd=False))]


def test_a_wrong_token_is_refused_and_changes_nothing(table, entry):
    (refusal,) = table.handle(opened(entry, token=b"x" * 16), 0)
    assert isinstance(refusal.message, control.Refused)
    assert entry.reader is None


def test_a_second_reader_is_refused(table, entry):
    table.handle(opened(entry), 0)
    (refusal,) = table.handle(opened(entry, 2), 0)
    assert "another receiver" in refusal.message.reason
    assert table.read_by(1) is entry


def test_no_lease_runs_while_the_export_is_being_filled(table, entry):
    assert table.next_deadline() is None
    assert table.handle(TimePassed(), 1e9) == []


def test_the_lease_ends_when_nobody_comes(table, entry):
    table.handle(OwnerSealed(entry.export, b""), 5)
    assert table.next_deadline() == 15
    assert table.handle(TimePassed(), 14.9) == []
    assert table.handle(TimePassed(), 15) == [Free(entry.export, taken=False)]
    (refusal,) = table.handle(opened(entry), 16)
    assert "lease ended" in refusal.message.reason


def test_a_beating_reader_keeps_the_lease(table, entry):
    table.handle(opened(entry), 0)
    table.handle(OwnerSealed(entry.export, b""), 0)
    for now in range(9, 100, 9):
        table.handle(ReaderBeat(1), now)
        assert table.handle(TimePassed(), now) == []
    assert table.handle(TimePassed(), 99 + LEASE_S) == [
        Send(1, control.Withdrawn("its lease ended")),
        Free(entry.export, taken=False),
    ]
    assert table.handle(ReaderReleased(1), 120) == [Send(1, control.Released(valid=False))]


def test_a_lost_reader_frees_at_once(table, entry):
    table.handle(opened(entry), 0)
    assert table.handle(ReaderLost(1), 1) == [Free(entry.export, taken=False)]
    assert table.handle(OwnerSealed(entry.export, b""), 2) == []
    assert table.handle(Advanced(entry.export, 3), 2) == []
    assert table.handle(OwnerWithdrew(entry.export, "x"), 2) == []


def test_a_withdrawal_reaches_the_reader_and_a_late_one(table, entry):
    table.handle(opened(entry), 0)
    assert table.handle(OwnerWithdrew(entry.export, "cancelled"), 1) == [
        Send(1, control.Withdrawn("cancelled")),
        Free(entry.export, taken=False),
    ]
    (refusal,) = table.handle(opened(entry, 2), 2)
    assert "cancelled" in refusal.message.reason


def test_releasing_what_is_still_being_filled_is_not_taking_it(table, entry):
    table.handle(opened(entry), 0)
    assert table.handle(ReaderReleased(1), 1) == [
        Send(1, control.Released(valid=False)),
        Send(1, control.Withdrawn("released while being filled")),
        Free(entry.export, taken=False),
    ]


def test_a_helping_connection_reads_the_same_export_while_it_is_open(table, entry):
    join = ReaderJoined(2, entry.export, entry.token)
    (refusal,) = table.handle(join, 0)
    assert isinstance(refusal.message, control.Refused), "nobody has opened it"
    table.handle(opened(entry), 0)
    assert table.handle(join, 0) == [Send(2, control.Opened(fd=False))]
    assert isinstance(table.handle(ReaderJoined(3, entry.export, b"no"), 0)[0].message, control.Refused)
    table.handle(OwnerSealed(entry.export, b""), 0)
    assert table.read_by(2) is entry
    table.handle(ReaderBeat(2), 9)
    assert table.handle(TimePassed(), 15) == []
    assert table.handle(ReaderReleased(2), 15) == [Send(2, control.Released(valid=False))]
    assert table.handle(ReaderLost(2), 16) == []
    assert table.read_by(2) is None
    assert table.handle(ReaderReleased(1), 17)[-1] == Free(entry.export, taken=True)


def test_only_the_last_ends_are_remembered():
    table = ExportTable(remembered=2)
    entries = [table.add([0], 1, LEASE_S) for _ in range(3)]
    for entry in entries:
        table.handle(OwnerWithdrew(entry.export, "why"), 0)
    reasons = [table.handle(opened(entry), 0)[0].message.reason for entry in entries]
    assert ["why" in reason for reason in reasons] == [False, True, True]


class Exports(RuleBasedStateMachine):
    """Any order of events: freed exactly once, never under a valid reader, deadlines never late."""

    exports = Bundle("exports")
    connections = st.integers(1, 4)

    def __init__(self):
        super().__init__()
        self.table = ExportTable()
        self.now = 0.0
        self.freed = {}
        self.known = {}
        self.sealed = set()
        self.reader = {}
        self.expires = {}

    def tell(self, event):
        instructions = self.table.handle(event, self.now)
        for instruction in instructions:
            if isinstance(instruction, Free):
                assert instruction.export not in self.freed, "freed twice"
                self.freed[instruction.export] = instruction.taken
                self.check_freed(instruction, event)
                self.reader.pop(instruction.export, None)
        return instructions

    def check_freed(self, free, event):
        reader = self.reader.get(free.export)
        if free.taken:
            assert event == ReaderReleased(reader)
            assert free.export in self.sealed
            assert self.expires[free.export] > self.now
        elif isinstance(event, TimePassed):
            assert free.export in self.sealed
            assert self.expires[free.export] <= self.now, "freed while the lease was valid"
        elif isinstance(event, OwnerWithdrew):
            assert event.export == free.export
        else:
            assert isinstance(event, ReaderLost | ReaderReleased)
            assert event.connection == reader

    def renew(self, export):
        if export in self.sealed and export not in self.freed:
            self.expires[export] = self.now + LEASE_S

    @rule(target=exports, tokens=st.integers(1, 64))
    def add(self, tokens):
        entry = self.table.add([0, 1, 2, 3], tokens, LEASE_S)
        self.known[entry.export] = entry
        return entry

    @rule(entry=exports, tokens=st.integers(0, 100))
    def advance(self, entry, tokens):
        for send in self.tell(Advanced(entry.export, tokens)):
            assert send.message.tokens <= entry.tokens

    @rule(entry=exports)
    def seal(self, entry):
        if entry.export not in self.freed and entry.export not in self.sealed:
            self.sealed.add(entry.export)
            self.renew(entry.export)
        self.tell(OwnerSealed(entry.export, b"m"))

    @rule(entry=exports)
    def withdraw(self, entry):
        self.tell(OwnerWithdrew(entry.export, "why"))
        assert entry.export in self.freed

    @rule(entry=exports, connection=connections, right=st.booleans())
    def open(self, entry, connection, right):
        answer = self.tell(ReaderOpened(connection, entry.export, entry.token if right else b"no"))
        assert all(send.connection == connection for send in answer)
        if isinstance(answer[0].message, control.Opened):
            assert right
            assert entry.export not in self.freed
            assert entry.export not in self.reader
            assert connection not in self.reader.values()
            self.reader[entry.export] = connection
            self.renew(entry.export)

    @rule(entry=exports, connection=st.integers(11, 12))
    def join(self, entry, connection):
        (answer,) = self.tell(ReaderJoined(connection, entry.export, entry.token))
        assert isinstance(answer.message, control.Opened) == (entry.export in self.reader)

    @rule(connection=st.integers(11, 12))
    def helper_beats_or_leaves(self, connection):
        helped = self.table.read_by(connection)
        self.tell(ReaderBeat(connection))
        if helped is not None:
            assert helped.export not in self.freed
            self.renew(helped.export)
        assert self.tell(ReaderLost(connection)) == []

    @rule(connection=connections)
    def beat(self, connection):
        self.tell(ReaderBeat(connection))
        for export, reader in self.reader.items():
            if reader == connection:
                self.renew(export)

    @rule(connection=connections)
    def release(self, connection):
        reading = [export for export, reader in self.reader.items() if reader == connection]
        answer = self.tell(ReaderReleased(connection))[0].message
        assert answer.valid == any(self.freed.get(export) is True for export in reading)

    @rule(connection=connections)
    def lose(self, connection):
        self.tell(ReaderLost(connection))
        assert connection not in self.reader.values()

    @rule(seconds=st.floats(0, 15))
    def pass_time(self, seconds):
        """Go on as a shell does: stop at every deadline on the way."""
        end = self.now + seconds
        while (deadline := self.table.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.tell(TimePassed())
        self.now = end

    @invariant()
    def live_or_freed(self):
        assert set(self.table.entries) == set(self.known) - set(self.freed)
        assert {
            entry.export: entry.reader for entry in self.table.entries.values() if entry.reader
        } == self.reader
        deadline = self.table.next_deadline()
        running = [self.expires[export] for export in self.sealed - set(self.freed)]
        assert not running or (deadline is not None and deadline <= min(running))

    def teardown(self):
        for export in list(self.table.entries):
            self.tell(OwnerWithdrew(export, "stopping"))
        assert set(self.freed) == set(self.known)


TestExports = Exports.TestCase
