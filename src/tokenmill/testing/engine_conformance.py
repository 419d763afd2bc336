"""The test suite that every engine must pass.

Subclass ``EngineConformance`` in a test module, override ``make_engine``, and let pytest (with pytest-asyncio
in auto mode) collect it. Engines are compared with themselves: the same tokens must come out whatever way a
request takes.
"""

from __future__ import annotations

import asyncio
import random

from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, PromptScored, Tokens
from tokenmill.serve.engines.base import Engine
from tokenmill.testing.engine_client import EngineClient, finished, hand_over


class EngineConformance:
    """Override ``make_engine``; the rest are tests."""

    vocab_size: int = 256
    """Prompts are drawn from token ids 8 to this."""

    def make_engine(
        self, *, kv_blocks: int = 256, prefill_budget: int = 64, role: Role = Role.BOTH
    ) -> Engine:
        """Make a fresh engine with a KV transport of its own and blocks of 16 tokens."""
        raise AssertionError("override make_engine")

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        """Make a prompt of ``length`` token ids, different for each seed."""
        return random.Random(f"{length}/{seed}").choices(range(8, self.vocab_size), k=length)

    async def test_tells_what_it_is(self) -> None:
        """Info is filled in."""
        async with EngineClient(self.make_engine()) as client:
            assert client.info.max_model_len > 0
            assert client.info.kv_blocks > 0
            assert client.info.vocab_size >= self.vocab_size
            assert client.info.fingerprint

    async def test_makes_as_many_tokens_as_asked(self) -> None:
        """``max_tokens`` ends a request with reason length, and positions start at 0."""
        async with EngineClient(self.make_engine()) as client:
            _, answer = client.submit(self.prompt(20), max_tokens=7)
            await finished(answer)
            assert answer.reason is FinishReason.LENGTH
            assert len(answer.tokens) == 7
            assert answer.first_index == 0

    async def test_is_reproducible_and_depends_on_the_prompt(self) -> None:
        """Greedy output repeats; another first token gives another output."""
        prompt = self.prompt(40)
        other = [(prompt[0] - 8 + 1) % (self.vocab_size - 8) + 8, *prompt[1:]]
        async with EngineClient(self.make_engine()) as client:
            first = await client.generate(prompt)
            assert await client.generate(prompt) == first
            assert await client.generate(other) != first

    async def test_the_seed_alone_decides_sampling(self) -> None:
        """Same seed, same tokens, alone or in company; another seed, other tokens."""
        prompt = self.prompt(30)
        async with EngineClient(self.make_engine()) as client:
            alone = await client.generate(prompt, temperature=1.0, seed=7)
            company = [client.submit(self.prompt(25, i), temperature=1.0, seed=i)[1] for i in range(4)]
            again = await client.generate(prompt, temperature=1.0, seed=7)
            other = await client.generate(prompt, temperature=1.0, seed=8)
            await finished(*company)
            assert again == alone
            assert other != alone

    async def test_company_changes_nothing(self) -> None:
        """Each of several requests at once, long ones in chunks, gives what it gives alone."""
        prompts = [self.prompt(length, length) for length in (5, 16, 33, 150, 201)]
        async with EngineClient(self.make_engine()) as client:
            alone = [await client.generate(prompt) for prompt in prompts]
        async with EngineClient(self.make_engine()) as client:
            answers = [client.submit(prompt)[1] for prompt in prompts]
            await finished(*answers)
            assert [answer.tokens for answer in answers] == alone

    async def test_prefix_hits_change_nothing(self) -> None:
        """A second request with the same prefix reports cached tokens and gives the same tokens."""
        shared = self.prompt(96)
        prompts = [shared + self.prompt(10, seed) for seed in range(3)]
        async with EngineClient(self.make_engine()) as client:
            cold = [await client.generate(prompt) for prompt in prompts[1:]]
            _, answer = client.submit(prompts[1])
            await finished(answer)
            assert isinstance(answer.end, Finished)
            assert answer.end.cached_tokens >= 96
            assert answer.tokens == cold[0]
        async with EngineClient(self.make_engine()) as client:
            await client.generate(prompts[0])
            assert [await client.generate(prompt) for prompt in prompts[1:]] == cold

    async def test_too_few_blocks_change_nothing(self) -> None:
        """Sequences that push each other out of the cache are recomputed to the same tokens."""
        prompts = [self.prompt(60, seed) for seed in range(4)]
        async with EngineClient(self.make_engine()) as client:
            alone = [await client.generate(prompt, max_tokens=40) for prompt in prompts]
        async with EngineClient(self.make_engine(kv_blocks=14)) as client:
            answers = [client.submit(prompt, max_tokens=40)[1] for prompt in prompts]
            await finished(*answers)
            assert [answer.tokens for answer in answers] == alone
            async with asyncio.timeout(30):  # a server tells it when it is asked next
                while not client.engine.metrics().preemptions_total:  # noqa: ASYNC110 - no engine tells it
                    await asyncio.sleep(0.01)

    async def test_a_replay_goes_on_where_it_was_cut(self) -> None:
        """With ``output`` given the rest comes, from the next position on, greedy and seeded."""
        prompt = self.prompt(37)
        for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
            async with EngineClient(self.make_engine()) as client:
                whole = await client.generate(prompt, **sampling)
                _, answer = client.submit(prompt, output=whole[:5], **sampling)  # type: ignore[arg-type]
                await finished(answer)
                assert answer.first_index == 5
                assert whole[:5] + answer.tokens == whole

    async def test_stop_ids_end_it(self) -> None:
        """A stop token ends the request, is named, and is ignored below ``min_tokens``."""
        prompt = self.prompt(21)
        async with EngineClient(self.make_engine()) as client:
            whole = await client.generate(prompt, max_tokens=24)
            stop = whole[3]
            _, answer = client.submit(prompt, max_tokens=24, stop_token_ids=(stop,))
            await finished(answer)
            assert answer.reason is FinishReason.STOP
            assert isinstance(answer.end, Finished)
            assert answer.end.stop_token == stop
            assert answer.tokens == whole[: whole.index(stop) + 1]

    async def test_prefill_here_decode_there(self) -> None:
        """Handing the cache over gives the tokens of one engine, for short, long and cached prompts."""
        prompts = [self.prompt(length) for length in (3, 16, 47, 200)]
        async with EngineClient(self.make_engine()) as one:
            alone = [await one.generate(prompt) for prompt in prompts]
        async with (
            EngineClient(self.make_engine(role=Role.PREFILL)) as prefill,
            EngineClient(self.make_engine(role=Role.DECODE)) as decode,
        ):
            for _ in range(2):  # the second time both sides have prefix hits
                for prompt, expected in zip(prompts, alone, strict=True):
                    tokens, first, rest = await hand_over(prefill, decode, prompt)
                    assert tokens == expected
                    assert first.reason is FinishReason.HANDOFF
                    assert rest.first_index in (0, 1)  # who waits for nobody may tell the first token too
            assert decode.engine.metrics().prefill_tokens_total == 0

    async def test_many_handoffs_at_once(self) -> None:
        """Handoffs do not mix each other up, and nothing stays behind."""
        prompts = [self.prompt(20 + 13 * i, i) for i in range(8)]
        async with EngineClient(self.make_engine()) as one:
            alone = [await one.generate(prompt) for prompt in prompts]
        async with (
            EngineClient(self.make_engine(role=Role.PREFILL)) as prefill,
            EngineClient(self.make_engine(role=Role.DECODE)) as decode,
        ):
            results = await asyncio.gather(*(hand_over(prefill, decode, prompt) for prompt in prompts))
            assert [tokens for tokens, _, _ in results] == alone
            await self._empties(prefill)
            await self._empties(decode)

    async def test_another_cache_gives_other_tokens(self) -> None:
        """The negative control: with another request's cache the output differs."""
        prompt, other = self.prompt(50), self.prompt(50, seed=9)
        async with (
            EngineClient(self.make_engine(role=Role.PREFILL)) as prefill,
            EngineClient(self.make_engine(role=Role.DECODE)) as decode,
        ):
            right, _, _ = await hand_over(prefill, decode, prompt)
            _, stranger = prefill.submit(other, role=Role.PREFILL)
            async with asyncio.timeout(30):
                foreign = await asyncio.shield(stranger.offered)
            async with EngineClient(self.make_engine(role=Role.DECODE)) as fresh:
                wrong, _, _ = await hand_over(prefill, fresh, prompt, handoff=foreign)
            assert wrong[1:] != right[1:]

    async def test_a_lost_handoff_is_computed_here(self) -> None:
        """A descriptor that leads nowhere costs time, not tokens."""
        prompt = self.prompt(45)
        async with EngineClient(self.make_engine(role=Role.DECODE)) as decode:
            expected = await decode.generate(prompt)
            nowhere = Handoff(decode.info.transports[0], b"nowhere", len(prompt))
            _, answer = decode.submit(prompt, role=Role.DECODE, handoff=nowhere)
            await finished(answer)
            assert answer.first_index == 0
            assert answer.tokens == expected

    async def test_a_prefill_that_ends_at_once_hands_nothing_over(self) -> None:
        """One token asked for: prefill ends the request with its real reason."""
        async with EngineClient(self.make_engine(role=Role.PREFILL)) as prefill:
            _, answer = prefill.submit(self.prompt(30), role=Role.PREFILL, max_tokens=1)
            await finished(answer)
            assert answer.reason is FinishReason.LENGTH
            assert len(answer.tokens) == 1
            await self._empties(prefill)

    async def test_cancelling_ends_it_and_frees_everything(self) -> None:
        """Waiting, prefilling, decoding or exported: one end, and all blocks come back."""
        async with EngineClient(self.make_engine()) as client:
            long = [client.submit(self.prompt(100, i), max_tokens=2000) for i in range(6)]
            offering = client.submit(self.prompt(300), role=Role.PREFILL)
            await asyncio.wait_for(long[0][1].progress.wait(), 30)
            for request_id, _ in [*long, offering]:
                client.engine.cancel(request_id)
                client.engine.cancel(request_id)
            client.engine.cancel(RequestId("unknown"))
            await finished(*(answer for _, answer in long), offering[1])
            assert all(answer.reason is FinishReason.CANCELLED for _, answer in long)
            await self._empties(client)

    async def test_bad_requests_are_refused_and_hurt_nobody(self) -> None:
        """No prompt, impossible ids, too long for context or room: a 4xx; the engine goes on."""
        async with EngineClient(self.make_engine(kv_blocks=32)) as client:
            limit = client.info.max_model_len
            cases = {
                "empty": [],
                "negative": [-1, 9],
                "beyond": [client.info.vocab_size, 9],
                "too long": self.prompt(limit + 1),
            }
            for name, prompt in cases.items():
                _, answer = client.submit(prompt)
                await finished(answer)
                assert isinstance(answer.end, Failed), name
                assert 400 <= answer.end.status < 500, name
                assert not answer.end.retryable, name
            assert len(await client.generate(self.prompt(12))) == 16

    async def test_log_probabilities(self) -> None:
        """Each token has one, with as many alternatives as asked; the prompt's on request."""
        prompt = self.prompt(80)
        async with EngineClient(self.make_engine()) as client:
            _, answer = client.submit(prompt, max_tokens=5, logprobs=1, prompt_logprobs=0)
            await finished(answer)
            scored = [
                entry
                for item in answer.items
                if isinstance(item, Tokens | Finished)
                for entry in item.logprobs or []
            ]
            assert len(scored) == 5
            assert all(entry.logprob <= 0 and len(entry.top) == 1 for entry in scored)
            prompts = [item for item in answer.items if isinstance(item, PromptScored)]
            assert len(prompts) == 1
            assert len(prompts[0].logprobs) == len(prompt)
            assert prompts[0].logprobs[0] is None
            assert all(entry is not None and entry.logprob <= 0 for entry in prompts[0].logprobs[1:])

    async def test_stopping_ends_what_is_open(self) -> None:
        """Requests under way end with a retryable failure."""
        async with EngineClient(self.make_engine()) as client:
            _, answer = client.submit(self.prompt(50), max_tokens=5000)
            await asyncio.wait_for(answer.progress.wait(), 30)
        await finished(answer)
        assert isinstance(answer.end, Failed)
        assert answer.end.retryable

    @staticmethod
    async def _empties(client: EngineClient) -> None:
        """Wait until no block is held and nothing runs."""
        async with asyncio.timeout(30):
            while True:
                metrics = client.engine.metrics()
                busy = metrics.kv_blocks_used + metrics.running + metrics.waiting + metrics.exported
                if not busy:
                    return
                await asyncio.sleep(0.01)
