from __future__ import annotations

from tokenmill.decide.router.load import WorkerLoad
from tokenmill.protocol.ids import Role
from tokenmill.protocol.metrics import StepMetrics


def test_what_a_report_covers_and_what_has_ended_is_forgotten():
    load = WorkerLoad()
    load.sent(("", "old"), 100, 0.0, 150)
    load.sent(("", "new"), 10, 0.995)
    assert (load.sent_sequences, load.sent_prefill_tokens, load.sent_tokens) == (2, 110, 160)
    load.reported(StepMetrics(running=1), 1.0)
    assert (load.sent_sequences, load.sent_prefill_tokens, load.sent_tokens) == (1, 10, 10)
    load.ended(("", "new"))
    load.ended(("", "old"))
    assert (load.sent_sequences, load.sent_prefill_tokens, load.sent_tokens) == (0, 0, 0)


def test_a_sequence_sent_twice_counts_once():
    load = WorkerLoad()
    load.sent(("", "r"), 100, 0.0)
    load.sent(("", "r"), 50, 1.0)
    assert (load.sent_sequences, load.sent_prefill_tokens) == (1, 50)


def test_facts_add_up():
    load = WorkerLoad()
    load.sent(("", "r"), 100, 5.0, 160)
    load.reported(
        StepMetrics(running=2, waiting=3, receiving=1, waiting_prefill_tokens=40, kv_blocks_used=7), 5.0
    )
    facts = load.facts(Role.DECODE, 1000, 16)
    assert facts == (140, 7, 17, 1000)
    assert load.facts(Role.PREFILL, 1000, 16).decoding == 0


def test_senders_are_told_apart():
    load = WorkerLoad()
    load.sent(("", "r"), 1, 0.0)
    load.sent(("p", "r"), 10, 0.0)
    load.sent(("q", "r"), 100, 0.0)
    load.sender_gone("p")
    assert load.sent_prefill_tokens == 101


def test_tokens_to_fetch_are_those_of_handoffs():
    load = WorkerLoad()
    load.sent(("", "own"), 100, 0.0)
    assert load.incoming_tokens == 0
    load.sent(("", "r"), 0, 2.0, 300)
    assert load.incoming_tokens == 300
    load.reported(StepMetrics(receiving=2, receiving_tokens=700), 2.01)
    assert load.incoming_tokens == 1000
    load.reported(StepMetrics(receiving=2, receiving_tokens=800), 3.0)
    assert load.incoming_tokens == 800
