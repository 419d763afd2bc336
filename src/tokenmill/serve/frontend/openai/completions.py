"""POST /v1/completions.

Exists to turn prompts of four kinds into sequences and these into OpenAI's answer. It must not know workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tokenmill.errors import BadRequest
from tokenmill.protocol.block_hashes import pack_tokens, token_array
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.frontend.answers import Collected, Tally
from tokenmill.serve.frontend.generation import SequenceSpec
from tokenmill.serve.frontend.http.messages import Answer, Request, Response, Stream
from tokenmill.serve.frontend.openai.chunks import CompletionChunks
from tokenmill.serve.frontend.openai.errors import decode_body
from tokenmill.serve.frontend.openai.json_texts import JsonTexts
from tokenmill.serve.frontend.openai.logprobs import CompletionLogprobs
from tokenmill.serve.frontend.openai.sampling import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    LengthLimits,
    check_range,
    check_supported,
    check_token_ids,
    choices_of,
    constraints_of,
    output_tokens,
    refuse,
    seed_of,
    stops_of,
    to_sampling,
)
from tokenmill.serve.frontend.openai.schema import CompletionRequest
from tokenmill.serve.frontend.openai.standing import standing_of
from tokenmill.serve.frontend.openai.text_models import answer_as_text
from tokenmill.serve.frontend.served import TextModel, TokenModel
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.standing import Standing

ENDPOINT = "/v1/completions"
DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """``text`` None: it came as ids, and nobody has asked for its text."""

    ids: list[int]
    text: str | None
    packed: bytes = b""


class CompletionApi:
    """The route, with its decoder."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(CompletionRequest)
        self._json_texts = JsonTexts()

    async def __call__(self, request: Request) -> Answer:
        """Answer one completion request. Cancelled: its sequences are cancelled at their workers."""
        service = self._service
        received_at = service.clock.now()
        body = decode_body(self._decoder, request.body)
        model = service.models.find(body.model)
        standing = standing_of(request, body.priority, service.config, received_at)
        if isinstance(model, TextModel):
            return await answer_as_text(service, model, ENDPOINT, request, body, standing, received_at)
        assert isinstance(model, TokenModel)
        check_supported(body, await model.constraints() if constraints_of(body) else ())
        refuse("suffix", body.suffix)
        check_range("logprobs", body.logprobs, 0, MAX_LOGPROBS)
        prompts = await self._prompts(model, body)
        n = choices_of(body, len(prompts))
        answer_id = service.new_id("cmpl-")
        prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        timeline = service.explain.begin(
            ENDPOINT, request, answer_id, received_at, prompt_tokens, model=model.name
        )
        specs = self._specs(model, body, prompts, n, answer_id, await model.limits(), standing)
        tally = Tally(prompt_tokens, per_prompt=n)
        skip_special = body.skip_special_tokens is not False
        if body.stream:
            chunks = self._chunks(model, body, prompts, n, answer_id)
            stream = await model.generator.stream(
                ENDPOINT, specs, chunks, tally, timeline=timeline, skip_special_tokens=skip_special
            )
            return Stream(stream)
        choices = await model.generator.collect(
            ENDPOINT, specs, tally, timeline=timeline, skip_special_tokens=skip_special
        )
        return Response(200, self._whole(model, body, prompts, n, answer_id, choices, tally))

    async def _prompts(self, model: TokenModel, body: CompletionRequest) -> list[Prompt]:
        tokenizer = model.tokenizer
        prompts: list[Prompt] = []
        for item in split_prompts(body.prompt):
            if isinstance(item, str):
                add_special = body.add_special_tokens is not False
                encoded = await tokenizer.encode_async(item, add_special_tokens=add_special)
                prompts.append(Prompt(encoded.ids, item, encoded.packed))
            else:
                check_token_ids("prompt", item, tokenizer.vocab_size)
                prompts.append(Prompt(item, tokenizer.decode(item) if body.echo else None))
            if not prompts[-1].ids:
                raise BadRequest("prompt must not be empty", param="prompt")
        return prompts

    def _specs(
        self,
        model: TokenModel,
        body: CompletionRequest,
        prompts: list[Prompt],
        n: int,
        answer_id: str,
        limits: LengthLimits,
        standing: Standing,
    ) -> list[SequenceSpec]:
        seed = self._service.seed(body.seed)
        stops = stops_of(body)
        samplings = [self._sampling(model, body, prompt, seed, limits) for prompt in prompts]
        return [
            SequenceSpec(
                request_id=RequestId(f"{answer_id}-{at * n + choice}"),
                prompt=token_array(prompt.packed or pack_tokens(prompt.ids)),
                sampling=msgspec.structs.replace(samplings[at], seed=seed_of(seed, at * n + choice)),
                stops=stops,
                include_stop=bool(body.include_stop_str_in_output),
                standing=standing,
                group=answer_id if n * len(prompts) > 1 else "",
                choice=at * n + choice,
                cache_salt=body.cache_salt or "",
                keep_output=not _prompt_only(body),
            )
            for at, prompt in enumerate(prompts)
            for choice in range(n)
        ]

    def _sampling(
        self, model: TokenModel, body: CompletionRequest, prompt: Prompt, seed: int, limits: LengthLimits
    ) -> Sampling:
        asked = 1 if _prompt_only(body) else body.max_tokens
        default = self._service.config.default_max_tokens or DEFAULT_MAX_TOKENS
        return to_sampling(
            body,
            max_tokens=output_tokens(len(prompt.ids), asked, default, limits),
            seed=seed,
            vocab_size=model.tokenizer.vocab_size,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
        )

    def _chunks(
        self, model: TokenModel, body: CompletionRequest, prompts: list[Prompt], n: int, answer_id: str
    ) -> CompletionChunks:
        return CompletionChunks(
            answer_id,
            int(self._service.clock.wall()),
            model.name,
            choices=len(prompts) * n,
            include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
            names=model.tokenizer,
            top_logprobs=body.logprobs,
            echoes=[(prompt.text or "", prompt.ids) for prompt in prompts for _ in range(n)]
            if body.echo
            else None,
            prompt_token_ids=[prompt.ids for prompt in prompts for _ in range(n)]
            if body.return_token_ids
            else None,
            json_texts=self._json_texts,
        )

    def _whole(
        self,
        model: TokenModel,
        body: CompletionRequest,
        prompts: list[Prompt],
        n: int,
        answer_id: str,
        choices: list[Collected],
        tally: Tally,
    ) -> bytes:
        shown = [
            self._choice(model, body, prompts[index // n], index, choice)
            for index, choice in enumerate(choices)
        ]
        return msgspec.json.encode(
            {
                "id": answer_id,
                "object": "text_completion",
                "created": int(self._service.clock.wall()),
                "model": model.name,
                "choices": shown,
                "usage": tally.usage(),
            }
        )

    def _choice(
        self, model: TokenModel, body: CompletionRequest, prompt: Prompt, index: int, choice: Collected
    ) -> dict[str, object]:
        logprobs: dict[str, object] | None = None
        if body.logprobs is not None:
            tokens = choice.tokens
            scores: list[TokenLogprobs | None] = [*choice.logprobs]
            if body.echo:
                tokens = prompt.ids + tokens
                scores = [*(choice.prompt_logprobs or [None] * len(prompt.ids)), *scores]
            logprobs = CompletionLogprobs(model.tokenizer, body.logprobs).take(tokens, scores)
        shown: dict[str, object] = {
            "index": index,
            "text": (prompt.text or "") + choice.text if body.echo else choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.reason,
        }
        if body.return_token_ids:
            shown["prompt_token_ids"] = prompt.ids
            shown["token_ids"] = choice.tokens
        return shown


def _prompt_only(body: CompletionRequest) -> bool:
    """With echo, OpenAI allows ``max_tokens`` 0: the prompt comes back, with its log probabilities. A worker
    makes at least one token, which is then not shown."""
    return bool(body.echo) and body.max_tokens == 0


def split_prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Return the prompts of a request, each a text or token ids. Raises BadRequest for a mixture."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise BadRequest("prompt must not be empty", param="prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [ids]
    many = [item for item in prompt if not isinstance(item, int)]
    if ids or len({type(item) for item in many}) != 1:
        raise BadRequest(
            "prompt must be a string, a list of strings, a list of token ids, or a list of such lists",
            param="prompt",
        )
    if len(many) > MAX_CHOICES:
        raise BadRequest(f"prompt: at most {MAX_CHOICES} prompts, got {len(many)}", param="prompt")
    return many
