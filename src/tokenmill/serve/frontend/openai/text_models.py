"""Chats and completions of models whose workers take text.

Exists so that both APIs answer such a request in one way, whatever its fields. It must not know workers.
"""

from __future__ import annotations

from functools import partial

from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.serve.frontend.http.messages import Answer, Request, Response, Stream
from tokenmill.serve.frontend.openai.passing import PassedOn, packed_prompt, to_text_request
from tokenmill.serve.frontend.openai.schema import ChatRequest, CompletionRequest
from tokenmill.serve.frontend.served import TextModel
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.standing import Standing
from tokenmill.serve.frontend.text_running import TextSpec
from tokenmill.spec.models import ALL_MODELS


async def answer_as_text(
    service: Service,
    model: TextModel,
    endpoint: str,
    request: Request,
    body: ChatRequest | CompletionRequest,
    standing: Standing,
    received_at: float,
) -> Answer:
    """Answer one request. Raises what is wrong with it, or with the server. Cancelled: so it is at its
    worker."""
    chat = isinstance(body, ChatRequest)
    own_name = model.name == ALL_MODELS
    name = (body.model or "") if own_name else model.name
    text = to_text_request(
        body, request.body, name if own_name else "", most_output=service.config.max_output_tokens
    )
    answer_id = service.new_id("chatcmpl-" if chat else "cmpl-")
    timeline = service.explain.begin(endpoint, request, answer_id, received_at, text.tokens, model=name)
    await model.workers.context_tokens()  # waits for a first worker
    spec = TextSpec(
        request_id=RequestId(answer_id),
        request=text,
        packed=packed_prompt(body),
        standing=standing,
        without=partial(_without, model, name) if own_name else frozenset,
    )
    form = PassedOn(
        chat=chat,
        answer_id=answer_id,
        created_s=int(service.clock.wall()),
        name=name,
        stream=text.stream,
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
    )
    if text.stream:
        return Stream(await model.generator.stream(endpoint, spec, form, timeline))
    return Response(200, await model.generator.collect(endpoint, spec, form, timeline))


def _without(model: TextModel, name: str) -> frozenset[WorkerId]:
    """Workers that do not have the model now."""
    return model.offers.without(name) or frozenset()
