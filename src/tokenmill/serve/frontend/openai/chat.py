"""POST /v1/chat/completions.

Exists to turn a chat into one prompt and its sequences into OpenAI's answer. It must not know workers.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import Any

import msgspec

from tokenmill.errors import BadRequest
from tokenmill.protocol.block_hashes import token_array
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.frontend.answers import Collected, Tally
from tokenmill.serve.frontend.generation import SequenceSpec
from tokenmill.serve.frontend.http.messages import Answer, Request, Response, Stream
from tokenmill.serve.frontend.openai.chunks import ChatChunks
from tokenmill.serve.frontend.openai.errors import decode_body
from tokenmill.serve.frontend.openai.json_texts import JsonTexts
from tokenmill.serve.frontend.openai.logprobs import TokenNames, chat_logprobs
from tokenmill.serve.frontend.openai.sampling import (
    MAX_LOGPROBS,
    check_range,
    check_supported,
    choices_of,
    constraints_of,
    output_tokens,
    refuse,
    seed_of,
    stops_of,
    to_sampling,
    unsupported,
)
from tokenmill.serve.frontend.openai.schema import ChatRequest, TokenizeRequest
from tokenmill.serve.frontend.openai.standing import standing_of
from tokenmill.serve.frontend.openai.text_models import answer_as_text
from tokenmill.serve.frontend.openai.tool_chunks import ToolChunks, whole_message
from tokenmill.serve.frontend.openai.tools import ToolUse, asks_for_calls, tool_use
from tokenmill.serve.frontend.served import TextModel, TokenModel
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.standing import Standing
from tokenmill.serve.text.encoder import Encoded

ENDPOINT = "/v1/chat/completions"


class ChatApi:
    """The route, with its decoder."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(ChatRequest)
        self._json_texts = JsonTexts()

    async def __call__(self, request: Request) -> Answer:
        """Answer one chat. Cancelled: its sequences are cancelled at their workers."""
        service = self._service
        received_at = service.clock.now()
        body = decode_body(self._decoder, request.body)
        model = service.models.find(body.model)
        standing = standing_of(request, body.priority, service.config, received_at)
        if isinstance(model, TextModel):
            return await answer_as_text(service, model, ENDPOINT, request, body, standing, received_at)
        assert isinstance(model, TokenModel)
        shaped = constraints_of(body) or asks_for_calls(body)
        known = await model.constraints() if shaped else frozenset[str]()
        _check(body, known)
        use = tool_use(body, known, model.tool_format, model.tokenizer, service.randomness)
        encoded = await render_chat(model, body, use.tools)
        prompt = encoded.ids
        answer_id = service.new_id("chatcmpl-")
        timeline = service.explain.begin(
            ENDPOINT, request, answer_id, received_at, len(prompt), model=model.name
        )
        specs = await self._specs(model, body, encoded, answer_id, standing, use)
        tally = Tally(len(prompt), per_prompt=len(specs))
        skip_special = body.skip_special_tokens is not False
        if body.stream:
            chunks = self._chunks(model, body, prompt, answer_id, len(specs), use)
            stream = await model.generator.stream(
                ENDPOINT, specs, chunks, tally,
                timeline=timeline, skip_special_tokens=skip_special, shown=use.shown,
            )  # fmt: skip
            return Stream(stream)
        choices = await model.generator.collect(
            ENDPOINT, specs, tally,
            timeline=timeline, skip_special_tokens=skip_special, shown=use.shown,
        )  # fmt: skip
        return Response(200, self._whole(model, body, prompt, answer_id, choices, tally, use))

    async def _specs(
        self,
        model: TokenModel,
        body: ChatRequest,
        prompt: Encoded,
        answer_id: str,
        standing: Standing,
        use: ToolUse,
    ) -> list[SequenceSpec]:
        sampling = await self._sampling(model, body, prompt, use)
        stops = stops_of(body)
        choices = choices_of(body)
        return [
            SequenceSpec(
                request_id=RequestId(f"{answer_id}-{index}"),
                prompt=token_array(prompt.packed),
                sampling=msgspec.structs.replace(sampling, seed=seed_of(sampling.seed, index))
                if index
                else sampling,
                stops=stops,
                include_stop=bool(body.include_stop_str_in_output),
                standing=standing,
                group=answer_id if choices > 1 else "",
                choice=index,
                cache_salt=body.cache_salt or "",
            )
            for index in range(choices)
        ]

    async def _sampling(
        self, model: TokenModel, body: ChatRequest, prompt: Encoded, use: ToolUse
    ) -> Sampling:
        """Return how tokens of the first choice are chosen."""
        service = self._service
        limits = await model.limits()
        field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        default = service.config.default_max_tokens or None
        max_tokens = output_tokens(
            len(prompt.ids), asked, default, limits, field=field, prompt_field="messages"
        )
        return to_sampling(
            body,
            max_tokens=max_tokens,
            seed=service.seed(body.seed),
            vocab_size=model.tokenizer.vocab_size,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            constraints=use.constraints,
        )

    def _chunks(
        self,
        model: TokenModel,
        body: ChatRequest,
        prompt: list[int],
        answer_id: str,
        choices: int,
        use: ToolUse,
    ) -> ChatChunks:
        make = ChatChunks if use.parser is None else partial(ToolChunks, parser=use.parser)
        return make(
            answer_id,
            int(self._service.clock.wall()),
            model.name,
            choices=choices,
            include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
            names=model.tokenizer,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_token_ids=prompt if body.return_token_ids else None,
            json_texts=self._json_texts,
        )

    def _whole(
        self,
        model: TokenModel,
        body: ChatRequest,
        prompt: list[int],
        answer_id: str,
        choices: list[Collected],
        tally: Tally,
        use: ToolUse,
    ) -> bytes:
        answer: dict[str, object] = {
            "id": answer_id,
            "object": "chat.completion",
            "created": int(self._service.clock.wall()),
            "model": model.name,
            "choices": [
                _choice(model.tokenizer, body, index, choice, use) for index, choice in enumerate(choices)
            ],
            "usage": tally.usage(),
        }
        if body.return_token_ids:
            answer["prompt_token_ids"] = prompt
        return msgspec.json.encode(answer)


def _choice(
    names: TokenNames, body: ChatRequest, index: int, choice: Collected, use: ToolUse
) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": choice.text, "refusal": None}
    reason = choice.reason
    if use.parser is not None:
        message, reason = whole_message(use.parser(), choice)
    shown: dict[str, object] = {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(names, choice.tokens, choice.logprobs, body.top_logprobs or 0)
        if body.logprobs
        else None,
        "finish_reason": reason,
    }
    if body.return_token_ids:
        shown["token_ids"] = choice.tokens
    return shown


def _check(body: ChatRequest, constraints: Container[str]) -> None:
    check_supported(body, constraints)
    refuse("audio", body.audio)
    refuse("prediction", body.prediction)
    if body.modalities not in (None, ["text"]):
        raise unsupported("modalities", 'leave it out or set it to ["text"]')
    check_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")


async def render_chat(
    model: TokenModel, body: ChatRequest | TokenizeRequest, tools: list[Any] | None
) -> Encoded:
    """Return the prompt of a chat in token ids, with the ``tools`` that the model is to know of."""
    if model.template is None:
        raise BadRequest(
            f"the model {model.name} has no chat template; use /v1/completions", param="messages"
        )
    continued = bool(body.continue_final_message)
    generation = body.add_generation_prompt
    further = dict(body.chat_template_kwargs or {})
    for name in ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"):
        if name in further:
            raise BadRequest(
                f"chat_template_kwargs.{name} is a field of its own", param=f"chat_template_kwargs.{name}"
            )
    text = model.template.render(
        body.messages or [],
        add_generation_prompt=not continued if generation is None else generation,
        continue_final_message=continued,
        tools=tools,
        **further,
    )
    return await model.tokenizer.encode_async(text, add_special_tokens=False)
