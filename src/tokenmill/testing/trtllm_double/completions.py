"""How the double answers ``/v1/completions``: the order of a request's life, and the wire form of its
answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from tokenmill.clock import Clock
from tokenmill.testing.trtllm_double.faults import Faults, How, Record
from tokenmill.testing.trtllm_double.fields import DISAGGREGATED, OLD_DISAGGREGATED, Refused, check_completion
from tokenmill.testing.trtllm_double.http import Request
from tokenmill.testing.trtllm_double.options import EngineOptions, Quirks
from tokenmill.testing.trtllm_double.plant import Made, Plant, Sequence
from tokenmill.testing.trtllm_double.tokens import text_of
from tokenmill.testing.trtllm_double.transfer import CacheSender, Held, TransferFailed, fetch_cache

LOOK_S = 0.01
"""Between two looks whether the client is still there; the engine looks once a second."""

FIRST_GLOBAL_ID = 1 << 40
TRANSFER_TIMEOUT_MS = 60_000


class Completions:
    """Answers requests. ``faults``: what is to go wrong; ``record``: what was seen."""

    def __init__(
        self,
        model: str,
        plant: Plant,
        sender: CacheSender,
        engine: EngineOptions,
        quirks: Quirks,
        max_seq_len: int,
        clock: Clock,
    ) -> None:
        self.faults = Faults()
        self.record = Record()
        self.params_fields = OLD_DISAGGREGATED if quirks.old else DISAGGREGATED
        self._model = model
        self._plant = plant
        self._sender = sender
        self._engine = engine
        self._quirks = quirks
        self._max_seq_len = max_seq_len
        self._clock = clock
        self._next_id = 1
        self._holds: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """End what waits for decoders."""
        for task in tuple(self._holds):
            task.cancel()
        await asyncio.gather(*self._holds, return_exceptions=True)

    async def answer(self, request: Request) -> None:
        """Answer one request. Cancelled: it is dropped."""
        try:
            fields = check_completion(msgspec.json.decode(request.body), self.params_fields)
        except (Refused, msgspec.DecodeError) as error:
            self._violated(str(error))
            request.answer.json({"error": str(error)}, 400)
            return
        params: Mapping[str, object] = fields.get("disaggregated_params") or {}  # type: ignore[assignment]
        kind = str(params.get("request_type") or "plain")
        try:
            sequence = self._sequence(fields, params, kind)
        except Refused as error:
            request.answer.json(_error(str(error)), 400)
            return
        self.record.kinds[kind] = self.record.kinds.get(kind, 0) + 1
        self.record.last = fields
        how = self._fault(kind)
        if how in ("error", "crash"):
            status = 400 if how == "error" else 500
            request.answer.json(_error("Generation failed: told to", status), status)
        elif how == "hang_up":
            request.answer.hang_up()
        else:
            await self._generate(request, Reply(fields, params, kind, how), sequence)

    def _sequence(self, fields: dict[str, object], params: Mapping[str, object], kind: str) -> Sequence:
        """Return what the plant is given. Raises Refused as the engine does."""
        if fields["model"] != self._model:
            self._violated(f"model is {fields['model']!r}, but this server has {self._model!r}")
        sequence = Sequence(fields)
        if kind in ("context_only", "generation_only") and not self._transceiver():
            raise Refused(
                "kv_cache_transceiver is disabled, please set 'cache_transceiver_config: "
                "backend:<backend_type>` in config file for disaggregated serving"
            )
        if kind == "context_only":
            if not self._engine.disable_overlap_scheduler:
                raise Refused(
                    "Context only requests are not supported in pytorch backend when overlap is enabled."
                )
            if fields.get("stream"):
                self._violated("context_only with stream: its parameters come with a whole answer alone")
            sequence.prefills = True
        if kind == "generation_only":
            first = params["first_gen_tokens"]
            sequence.first = list(first)  # type: ignore[call-overload]
        shared = params.get("disagg_request_id")
        if isinstance(shared, int) and not FIRST_GLOBAL_ID <= shared < 1 << 63:
            raise Refused(f"disagg_request_id {shared} lies among the engine's own")
        length = len(sequence.prompt)
        if length >= self._max_seq_len:
            raise Refused(f"The prompt length ({length}) should not exceed max_seq_len ({self._max_seq_len})")
        if max(sequence.prompt) >= self._quirks.vocab + 64 or min(sequence.prompt) < 0:
            raise Refused("Token ID out of range")
        sequence.most = min(sequence.most, self._max_seq_len - length)
        if not self._plant.cache.fits(length + sequence.most):
            raise Refused("the KV cache cannot hold the sequence")
        return sequence

    def _transceiver(self) -> bool:
        config = self._engine.cache_transceiver_config
        return config is not None and bool(config.backend)

    def _fault(self, kind: str) -> How | None:
        faults = self.faults
        if faults.completions <= 0 or faults.only not in ("", kind):
            return None
        faults.completions -= 1
        return faults.how

    def _violated(self, why: str) -> None:
        self.record.violations.append(why)

    async def _generate(self, request: Request, reply: Reply, sequence: Sequence) -> None:
        """Run it through the plant while the client is there."""
        if reply.fields.get("stream"):
            request.answer.begin()
        try:
            if reply.kind == "generation_only":
                state = str(reply.params["encoded_opaque_state"])
                sequence.fetched = await fetch_cache(state, reply.transfer_id, len(sequence.prompt))
            self._plant.submit(sequence)
            await self._play(request, reply, sequence)
        except TransferFailed as error:
            await self._failed(request, f"Generation failed: {error}")
        except ConnectionError:
            self.record.aborted += 1
            raise
        finally:
            if not (sequence.prefills and sequence.lease is not None and reply.held):
                self._plant.drop(sequence)

    async def _play(self, request: Request, reply: Reply, sequence: Sequence) -> None:
        all_made: list[Made] = []
        while not (all_made and all_made[-1].finish):
            made = await self._next(request, sequence)
            if made is None:
                self.record.aborted += 1
                return
            all_made.append(made)
            if reply.fields.get("stream") and not await self._stream(request, reply, sequence, all_made):
                return
        if reply.fields.get("stream"):
            await request.answer.piece(b"[DONE]")
            request.answer.end()
        else:
            params = self._hold(reply, sequence, all_made) if sequence.prefills else None
            request.answer.json(self._whole(reply, sequence, all_made, params))

    async def _next(self, request: Request, sequence: Sequence) -> Made | None:
        """Wait for the next token; None: the client has gone."""
        while True:
            try:
                return await asyncio.wait_for(sequence.made.get(), LOOK_S)
            except TimeoutError:
                if request.answer.gone:
                    return None

    async def _stream(self, request: Request, reply: Reply, sequence: Sequence, made: list[Made]) -> bool:
        """Send a piece; returns whether more may follow."""
        piece = made[-1]
        if reply.how == "stream_error" or (reply.how == "late_error" and len(made) > 1):
            await self._failed(request, "Generation failed: told to")
        elif reply.how == "garbage":
            await request.answer.piece(b"{")
        elif reply.how == "silent_end":
            await request.answer.piece(b"[DONE]")
            request.answer.end()
        elif reply.how == "break" and len(made) > 2:
            request.answer.hang_up()
        else:
            if reply.how == "cancelled":
                piece.finish = "cancelled"
            for payload in self._pieces(reply, sequence, made):
                await request.answer.piece(msgspec.json.encode(payload))
            return True
        return False

    def _pieces(self, reply: Reply, sequence: Sequence, made: list[Made]) -> list[dict[str, object]]:
        """What an iteration sends: its tokens, and at the end the counts."""
        piece = made[-1]
        tokens, logprobs = list(piece.tokens), piece.logprobs
        if reply.kind == "generation_only" and len(made) == 1:
            if reply.how == "wrong_first":
                tokens = [tokens[0] + 1]
            if self._quirks.old:
                tokens, logprobs = [], []
        choice = self._choice(reply, tokens, logprobs, piece)
        usage = self._usage(sequence, sum(len(each.tokens) for each in made))
        options = reply.stream_options
        counted = options.get("include_usage") and options.get("continuous_usage_stats")
        if reply.how == "uncounted":
            counted = False
        payloads = [reply.envelope(self._model, [choice], usage if counted else None)]
        if piece.finish and options.get("include_usage"):
            payloads.append(reply.envelope(self._model, [], usage))
        return payloads

    def _whole(
        self, reply: Reply, sequence: Sequence, made: list[Made], params: dict[str, object] | None
    ) -> dict[str, object]:
        tokens = [token for each in made for token in each.tokens]
        logprobs = [logprob for each in made for logprob in each.logprobs]
        choice = self._choice(reply, tokens, logprobs, made[-1])
        choice |= {"disaggregated_params": params, "context_logits": None}
        answer = reply.envelope(self._model, [choice], self._usage(sequence, len(tokens)))
        return answer | {"prompt_token_ids": sequence.prompt if params is not None else None}

    def _choice(
        self, reply: Reply, tokens: list[int], logprobs: list[float], made: Made
    ) -> dict[str, object]:
        as_text = reply.fields.get("detokenize", True) or self._quirks.text_only
        return {
            "index": 0,
            "text": "".join(text_of(token) for token in tokens) if as_text else "",
            "token_ids": None if as_text else tokens,
            "logprobs": reply.logprobs(tokens, logprobs),
            "finish_reason": made.finish or None,
            "stop_reason": made.stop_reason,
            "avg_decoded_tokens_per_iter": None,
        }

    @staticmethod
    def _usage(sequence: Sequence, count: int) -> dict[str, object]:
        return {
            "prompt_tokens": len(sequence.prompt),
            "total_tokens": len(sequence.prompt) + count,
            "completion_tokens": count,
            "prompt_tokens_details": {"cached_tokens": sequence.cached_tokens},
        }

    def _hold(self, reply: Reply, sequence: Sequence, made: list[Made]) -> dict[str, object] | None:
        """Keep a prompt's cache for its decoder; returns the parameters that lead to it."""
        if made[-1].finish == "stop":
            return None
        own_id = self._next_id
        self._next_id += 1
        shared = reply.params.get("disagg_request_id")
        number = shared if isinstance(shared, int) else own_id
        config = self._engine.cache_transceiver_config
        timeout_ms = (config and config.kv_transfer_timeout_ms) or TRANSFER_TIMEOUT_MS
        assert sequence.state is not None
        held = Held(
            state=sequence.state,
            tokens=len(sequence.prompt),
            expires_at=self._clock.now() + timeout_ms / 1000,
            given=asyncio.get_running_loop().create_future(),
        )
        if not self.faults.forgets_caches:
            self._sender.held[number] = held
        reply.held = True
        task = asyncio.get_running_loop().create_task(self._release(number, held, sequence, timeout_ms))
        self._holds.add(task)
        task.add_done_callback(self._holds.discard)
        params: dict[str, object] = dict.fromkeys(self.params_fields)
        params |= {
            "request_type": "context_only",
            "first_gen_tokens": made[0].tokens,
            "ctx_request_id": own_id,
            "encoded_opaque_state": self._sender.opaque_state(),
        }
        return params  # an id from outside is not told again: whoever gave it knows it

    async def _release(self, number: int, held: Held, sequence: Sequence, timeout_ms: int) -> None:
        """Free a held cache once it is given, or nobody has asked in time. Cancelled: it is freed."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await held.given
            self.record.caches_given += 1
        except TimeoutError:
            self.record.caches_expired += 1
        finally:
            self._sender.held.pop(number, None)
            self._plant.drop(sequence)

    async def _failed(self, request: Request, why: str) -> None:
        """Tell an error: as an event where the head is out, else as a bad request, whatever it is."""
        if not request.answer.streaming:
            request.answer.json(_error(why), 400)
            return
        error = {"message": why, "type": "server_error", "code": None, "param": None}
        await request.answer.piece(msgspec.json.encode({"error": error}), b"[DONE]")
        request.answer.end()


class Reply:
    """A request on its way to its answer."""

    def __init__(
        self, fields: dict[str, object], params: Mapping[str, object], kind: str, how: How | None
    ) -> None:
        self.fields = fields
        self.params = params
        self.kind = kind
        self.how = how
        self.held = False
        self.stream_options: Mapping[str, object] = fields.get("stream_options") or {}  # type: ignore[assignment]

    @property
    def transfer_id(self) -> int:
        """The number under which the cache is asked for."""
        shared = self.params.get("disagg_request_id")
        own = self.params["ctx_request_id"]
        return shared if isinstance(shared, int) else int(own)  # type: ignore[call-overload]

    def envelope(
        self, model: str, choices: list[dict[str, object]], usage: dict[str, object] | None
    ) -> dict[str, object]:
        """Return an answer or event with these choices."""
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 0,
            "model": model,
            "choices": choices,
            "usage": usage,
        }

    def logprobs(self, tokens: list[int], logprobs: list[float]) -> dict[str, object] | None:
        """Return the form in which they are told: alternatives by text."""
        most = self.fields.get("logprobs")
        if not isinstance(most, int) or most < 1:
            return None
        return {
            "text_offset": [0] * len(tokens),
            "token_logprobs": logprobs,
            "tokens": [text_of(token) for token in tokens],
            "top_logprobs": [
                {text_of(token + rank): logprob - rank for rank in range(most)}
                for token, logprob in zip(tokens, logprobs, strict=True)
            ],
        }


def _error(why: str, status: int = 400) -> dict[str, object]:
    return {"object": "error", "message": why, "type": "BadRequestError", "param": None, "code": status}
