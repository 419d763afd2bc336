"""Which path and method goes where, and what every answer carries.

Exists as the one place between HTTP and the APIs: routes, error answers, request ids, counts by status. It
must not know any API's fields.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from tokenmill.errors import NotFound, TokenmillError
from tokenmill.serve.frontend.health import HealthApi
from tokenmill.serve.frontend.http.messages import Answer, Handler, Request, Response
from tokenmill.serve.frontend.openai.chat import ChatApi
from tokenmill.serve.frontend.openai.completions import CompletionApi
from tokenmill.serve.frontend.openai.errors import error_response, http_error_response
from tokenmill.serve.frontend.openai.text_api import TextApi
from tokenmill.serve.frontend.service import Service

_log = structlog.get_logger(__name__)

_MODEL_PREFIX = "/v1/models/"
_MODEL_ROUTE = "/v1/models/{id}"
_LONGEST_REQUEST_ID = 128

Routes = dict[str, dict[str, Handler]]


def routes(service: Service) -> Routes:
    """Return handlers by path and method."""
    text, health = TextApi(service), HealthApi(service)
    return {
        "/v1/chat/completions": {"POST": ChatApi(service)},
        "/v1/completions": {"POST": CompletionApi(service)},
        "/v1/models": {"GET": text.models},
        _MODEL_ROUTE: {"GET": text.model},
        "/tokenize": {"POST": text.tokenize},
        "/detokenize": {"POST": text.detokenize},
        "/live": {"GET": health.live},
        "/ready": {"GET": health.ready},
        "/health": {"GET": health.health},
        "/metrics": {"GET": health.metrics},
    }


class App:
    """The handler that the HTTP server calls."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._routes = routes(service)

    async def __call__(self, request: Request) -> Answer:
        """Answer a request; errors of the tree become answers. Cancelled: so is what it was doing."""
        request_id = self._request_id(request)
        endpoint, methods = self._find(request.path)
        try:
            answer = await self._handle(request, methods)
        except TokenmillError as error:
            answer = error_response(error)
            if answer.status >= 500:
                _log.warning("request failed", request_id=request_id, path=endpoint, error=error.message)
        if isinstance(answer, Response):
            self._service.metrics.request_ended(endpoint, str(answer.status))
            _log.debug("answered", request_id=request_id, path=endpoint, status=answer.status)
        else:
            self._service.metrics.request_ended(endpoint, "200")
            _log.debug("streaming", request_id=request_id, path=endpoint)
        return replace(answer, headers=(*answer.headers, ("x-request-id", request_id)))

    def _find(self, path: str) -> tuple[str, dict[str, Handler] | None]:
        methods = self._routes.get(path)
        if methods is not None:
            return path, methods
        if path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
            return _MODEL_ROUTE, self._routes[_MODEL_ROUTE]
        if len(path) > 1 and path.endswith("/"):
            return self._find(path.rstrip("/") or "/")
        return "unknown", None

    async def _handle(self, request: Request, methods: dict[str, Handler] | None) -> Answer:
        if methods is None:
            raise NotFound(f"there is no {request.path[:200]} here")
        method = request.method
        if method == "HEAD" and "GET" in methods:
            method = "GET"
        handler = methods.get(method)
        if handler is not None:
            return await handler(request)
        allowed = (*methods, "OPTIONS", "HEAD") if "GET" in methods else (*methods, "OPTIONS")
        allow = (("allow", ", ".join(allowed)),)
        if method == "OPTIONS":
            return Response(204, headers=allow)
        response = http_error_response(
            405, f"{request.path} takes {', '.join(methods)}, not {request.method}"
        )
        return replace(response, headers=allow)

    def _request_id(self, request: Request) -> str:
        asked = request.headers.get("x-request-id", "")
        if 0 < len(asked) <= _LONGEST_REQUEST_ID and asked.isascii() and asked.isprintable():
            return asked
        return self._service.new_id("req-")
