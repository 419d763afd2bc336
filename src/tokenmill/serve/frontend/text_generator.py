"""Requests for text as they are served: streamed or whole, with their deadlines and counts.

Exists beside ``generator`` because a text answer passes through: its choices are the server's own JSON,
around which only names and usage are ours. It must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.protocol.card import Prices
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.text import TextUsage
from tokenmill.serve.frontend.answers import Tally
from tokenmill.serve.frontend.event_stream import Controls, EventStream
from tokenmill.serve.frontend.generator import Means, RunningRequest
from tokenmill.serve.frontend.metrics import ModelMetrics
from tokenmill.serve.frontend.openai.chunks import DONE
from tokenmill.serve.frontend.openai.passing import PassedOn
from tokenmill.serve.frontend.text_running import RunningText, TextListener, TextSpec
from tokenmill.serve.frontend.timeline import RequestTimeline
from tokenmill.serve.frontend.whole_answer import WholeAnswer
from tokenmill.serve.frontend.write_batch import WriteBatch

PricesOf = Callable[[WorkerId], Prices | None]


class Account:
    """Writes down what an answer used, once its server has told."""

    def __init__(
        self, tally: Tally, metrics: ModelMetrics, timeline: RequestTimeline, prices: PricesOf
    ) -> None:
        self._tally = tally
        self._metrics = metrics
        self._timeline = timeline
        self._prices = prices

    def used(self, worker: WorkerId, usage: TextUsage | None) -> None:
        """An answer of ``worker`` is complete."""
        if usage is None:
            return
        self._tally.prompt_tokens = self._timeline.prompt_tokens = usage.prompt_tokens
        self._tally.add(0, usage.output_tokens, usage.cached_tokens)
        prices = self._prices(worker)
        if prices is not None:
            self._metrics.cost += prices.cost(usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)


class StreamedText(EventStream):
    """An answer as server-sent events, one a piece."""

    def __init__(self, form: PassedOn, account: Account, controls: Controls, batch: WriteBatch) -> None:
        super().__init__(controls, batch)
        self._form = form
        self._account = account

    def text_made(self, pieces: list[bytes]) -> None:
        """Send an event for each piece."""
        self._write(self._form.events(pieces))

    def text_finished(
        self, worker: WorkerId, pieces: list[bytes], _reason: str, usage: TextUsage | None
    ) -> None:
        """Send the last pieces, usage and end."""
        self._account.used(worker, usage)
        self._finish("200", self._form.events(pieces) + self._form.usage(usage) + DONE)


class CollectedText(WholeAnswer[bytes]):
    """An answer that comes whole: the body."""

    def __init__(self, form: PassedOn, account: Account, on_end: Callable[[str], None]) -> None:
        super().__init__(on_end)
        self._form = form
        self._account = account

    def text_made(self, pieces: list[bytes]) -> None:
        """Nothing comes before the end of an answer that was asked for as a whole."""

    def text_finished(
        self, worker: WorkerId, pieces: list[bytes], _reason: str, usage: TextUsage | None
    ) -> None:
        """The answer is there."""
        self._account.used(worker, usage)
        self._finish(self._form.whole(pieces[-1] if pieces else b"[]", usage))


class TextGenerator:
    """Makes answers of one model whose workers take text."""

    def __init__(self, means: Means, prices: PricesOf) -> None:
        self._means = means
        self._prices = prices

    async def stream(
        self, endpoint: str, spec: TextSpec, form: PassedOn, timeline: RequestTimeline
    ) -> StreamedText:
        """Return the stream once its first bytes are there. Raises what goes wrong before that.

        Cancelled: so is the request, at its worker.
        """
        tally = Tally(0)
        running = self._means.running(endpoint, tally, timeline)
        answer = StreamedText(form, self._account(tally, timeline), running, self._means.batch)
        self._start(running, spec, answer)
        await answer.started()
        return answer

    async def collect(
        self, endpoint: str, spec: TextSpec, form: PassedOn, timeline: RequestTimeline
    ) -> bytes:
        """Return the whole answer's body. Raises what goes wrong. Cancelled: so is the request."""
        tally = Tally(0)
        running = self._means.running(endpoint, tally, timeline)
        answer = CollectedText(form, self._account(tally, timeline), running.ended)
        self._start(running, spec, answer)
        return await answer.result()

    def _account(self, tally: Tally, timeline: RequestTimeline) -> Account:
        return Account(tally, self._means.metrics, timeline, self._prices)

    def _start(self, running: RunningRequest, spec: TextSpec, listener: TextListener) -> None:
        means = self._means
        means.room.check()
        times = running.times(spec.request.tokens, means.flow_metrics)
        sequence = RunningText(spec, means.plant, listener, times, means.migration)
        running.begin([sequence], means.timeout_s(spec.standing.deadline_at))
