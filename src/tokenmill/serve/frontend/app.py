"""Which path and method goes where, and what every answer carries.

Exists as the one place between HTTP and the APIs: routes, error answers, request ids, counts by status. It
must not know any API's fields.
"""

from __future__ import annotations

import re
from dataclasses import replace

import structlog

from tokenmill.errors import ClientError, NotFound, TokenmillError
from tokenmill.serve.frontend.explain import EXPLAIN_PREFIX, EXPLAIN_ROUTE, ExplainApi
from tokenmill.serve.frontend.health import HealthApi
from tokenmill.serve.frontend.http.cors import Cors
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
_ALL_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})

_JSON_TYPES = frozenset({"", "application/json"})
_CHARSET = re.compile(r"charset\s*=\s*\"?(?P<name>[\w.:-]+)", re.IGNORECASE)

Routes = dict[str, dict[str, Handler]]


class UnsupportedMediaType(ClientError):
    """The body is of a kind that no route takes."""

    status = 415
    code = "unsupported_media_type"


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
        EXPLAIN_ROUTE: {"GET": ExplainApi(service.explain)},
        "/live": {"GET": health.live},
        "/ready": {"GET": health.ready},
        "/health": {"GET": health.health},
        "/metrics": {"GET": health.metrics},
    }


class App:
    """The handler that the HTTP server calls."""

    def __init__(self, service: Service, cors: Cors | None = None) -> None:
        self._service = service
        self._cors = cors
        self._routes = routes(service)

    async def __call__(self, request: Request) -> Answer:
        """Answer a request; errors of the tree become answers. Cancelled: so is what it was doing."""
        request_id = request.headers["x-request-id"] = self._request_id(request)
        endpoint, methods = self._find(request.path)
        try:
            answer = await self._handle(request, endpoint, methods)
        except TokenmillError as error:
            answer = error_response(error)
            self._service.explain.failed(request_id, str(answer.status), error)
            if answer.status >= 500:
                _log.warning("request failed", request_id=request_id, path=endpoint, error=error.message)
        if isinstance(answer, Response):
            self._service.metrics.request_ended(endpoint, str(answer.status))
            _log.debug("answered", request_id=request_id, path=endpoint, status=answer.status)
        else:
            self._service.metrics.request_ended(endpoint, "200")
            _log.debug("streaming", request_id=request_id, path=endpoint)
        headers = (*answer.headers, ("x-request-id", request_id))
        if self._cors is not None:
            headers += self._cors.headers(request)
        return replace(answer, headers=headers)

    def _find(self, path: str) -> tuple[str, dict[str, Handler] | None]:
        methods = self._routes.get(path)
        if methods is not None:
            return path, methods
        if path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
            return _MODEL_ROUTE, self._routes[_MODEL_ROUTE]
        if path.startswith(EXPLAIN_PREFIX) and len(path) > len(EXPLAIN_PREFIX):
            return EXPLAIN_ROUTE, self._routes[EXPLAIN_ROUTE]
        if len(path) > 1 and path.endswith("/"):
            return self._find(path.rstrip("/") or "/")
        return "unknown", None

    async def _handle(self, request: Request, endpoint: str, methods: dict[str, Handler] | None) -> Answer:
        method = request.method
        if methods is None:
            if method == "OPTIONS" and request.path == "*":
                return self._options(request, _ALL_METHODS)
            raise NotFound(f"there is no {request.path[:200]} here")
        if method == "HEAD" and "GET" in methods:
            method = "GET"
        handler = methods.get(method)
        if handler is not None:
            if method == "POST":
                _check_content_type(request)
                if endpoint in _GENERATING:
                    self._service.room.check()
            return await handler(request)
        allowed = (*methods, "OPTIONS", "HEAD") if "GET" in methods else (*methods, "OPTIONS")
        if method == "OPTIONS":
            return self._options(request, allowed)
        response = http_error_response(
            405, f"{request.path} takes {', '.join(methods)}, not {request.method}"
        )
        return replace(response, headers=(("allow", ", ".join(allowed)),))

    def _options(self, request: Request, allowed: tuple[str, ...]) -> Response:
        headers: tuple[tuple[str, str], ...] = (("allow", ", ".join(allowed)),)
        if self._cors is not None:
            headers += self._cors.preflight(request, allowed)
        return Response(204, headers=headers)

    def _request_id(self, request: Request) -> str:
        asked = request.headers.get("x-request-id", "")
        if 0 < len(asked) <= _LONGEST_REQUEST_ID and asked.isascii() and asked.isprintable():
            return asked
        return self._service.new_id("req-")


def _check_content_type(request: Request) -> None:
    """Raise for what cannot be JSON. Clients that name no type, or the one their library names unasked
    (text/plain, a form, octets), are judged by the body itself."""
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    if not rest and kind in _JSON_TYPES:
        return
    charset = _CHARSET.search(rest)
    if kind.strip().lower().startswith("multipart/"):
        raise UnsupportedMediaType("the body must be JSON; send Content-Type: application/json")
    if charset is not None and charset["name"].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"charset {charset['name']} is not supported; send UTF-8")
