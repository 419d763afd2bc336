"""Where a frontend can be reached: the address that clients use, and one of its own where several share that.

The own address is for probes, metrics and explain: on a shared port nobody can choose whom he asks. It only
answers questions; requests for tokens belong to the shared port, with its limits and its TLS. Must not know
what an answer says.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.messages import Answer, Handler, Request
from tokenmill.serve.frontend.http.server import HttpServer
from tokenmill.serve.frontend.http_settings import http_limits, tls_context
from tokenmill.serve.frontend.openai.errors import http_error_response
from tokenmill.spec.process import FrontendConfig


@dataclass(frozen=True, slots=True)
class Front:
    """A frontend that serves. ``own_url``: what reaches it alone; empty where it has no such address."""

    server: HttpServer
    url: str
    own_url: str


async def open_doors(config: FrontendConfig, handler: Handler, clock: Clock, stack: AsyncExitStack) -> Front:
    """Listen until ``stack`` is closed. Raises ConfigError where an address cannot be had.

    Cancelled: close ``stack``.
    """
    tls, limits = tls_context(config), http_limits(config)
    server = HttpServer(handler, http_error_response, limits=limits, clock=clock)
    stack.push_async_callback(server.close)
    await server.start(config.host, config.port, reuse_port=config.reuse_port, tls=tls)
    own_url = ""
    if config.own_listen:
        host, port = parse_host_port(config.own_listen)
        own = HttpServer(questions_only(handler), http_error_response, limits=limits, clock=clock)
        stack.push_async_callback(own.close)
        await own.start(host, port)
        own_url = f"http://{_url_host(host)}:{own.port}"
    scheme = "http" if tls is None else "https"
    return Front(server, f"{scheme}://{_url_host(config.host)}:{server.port}", own_url)


def questions_only(handler: Handler) -> Handler:
    """Return a handler that passes GET and HEAD on and refuses all else."""

    async def answer(request: Request) -> Answer:
        if request.method in ("GET", "HEAD"):
            return await handler(request)
        return http_error_response(405, f"this address takes GET alone, not {request.method}")

    return answer


def parse_host_port(text: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[host]:port". Raises ConfigError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ConfigError(f'own_listen {text!r}: write "host:port"; port 0 is any', param="own_listen")
    return host, port


def _url_host(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - what a user may have asked for
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
