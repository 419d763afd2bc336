"""GET /v1/models, POST /tokenize and /detokenize: what needs no worker's work.

Exists beside OpenAI's own routes in vLLM's form. It must not know workers' insides.
"""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

from tokenmill.errors import BadRequest
from tokenmill.serve.frontend.http.messages import Answer, Request, Response
from tokenmill.serve.frontend.openai.chat import render_chat
from tokenmill.serve.frontend.openai.errors import decode_body
from tokenmill.serve.frontend.openai.sampling import check_token_ids
from tokenmill.serve.frontend.openai.schema import DetokenizeRequest, TokenizeRequest
from tokenmill.serve.frontend.service import Service


class TextApi:
    """The routes, with their decoders."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenize = msgspec.json.Decoder(TokenizeRequest)
        self._detokenize = msgspec.json.Decoder(DetokenizeRequest)

    async def models(self, _request: Request) -> Answer:
        """List the models."""
        names = self._service.models.names()
        return _json({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Answer:
        """Describe one model, or 404."""
        return _json(self._model(unquote(request.path.removeprefix("/v1/models/"))))

    def _model(self, name: str) -> dict[str, object]:
        service = self._service
        return {
            "id": name,
            "object": "model",
            "created": service.created_s,
            "owned_by": "tokenmill",
            "max_model_len": service.models.find(name).workers.shortest_context or None,
        }

    async def tokenize(self, request: Request) -> Answer:
        """Return the ids of a text or a chat."""
        body = decode_body(self._tokenize, request.body)
        model = self._service.token_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("give either prompt or messages", param="prompt")
        if body.prompt is not None:
            add_special = body.add_special_tokens is not False
            ids = (await model.tokenizer.encode_async(body.prompt, add_special_tokens=add_special)).ids
        else:
            ids = (await render_chat(model, body, body.tools or None)).ids
        answer: dict[str, object] = {
            "count": len(ids),
            "max_model_len": model.workers.shortest_context or None,
            "tokens": ids,
        }
        if body.return_token_strs:
            answer["token_strs"] = [model.tokenizer.token_text(token) for token in ids]
        return _json(answer)

    async def detokenize(self, request: Request) -> Answer:
        """Return the text of ids."""
        body = decode_body(self._detokenize, request.body)
        tokenizer = self._service.token_model(body.model).tokenizer
        check_token_ids("tokens", body.tokens, tokenizer.vocab_size)
        return _json({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})


def _json(value: dict[str, object]) -> Response:
    return Response(200, msgspec.json.encode(value))
