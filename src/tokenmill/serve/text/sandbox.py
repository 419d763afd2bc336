"""The Jinja environment in which chat templates run.

Templates come with checkpoints, often from strangers: they run in Jinja's immutable sandbox. Filters,
globals and whitespace rules are those that checkpoints are written for (Hugging Face's). Must not know
what a message is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenmill.clock import Clock


class TemplateRefusal(TemplateError):
    """The template called ``raise_exception``: it says what is wrong with the messages."""


class GenerationTag(Extension):
    """Accepts ``{% generation %}...{% endgeneration %}``, which marks the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012  # Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block's body, run in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def make_environment(clock: Clock) -> ImmutableSandboxedEnvironment:
    """Return an environment whose ``strftime_now`` reads ``clock`` in the machine's time zone."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the output is a prompt, not a web page
        extensions=[GenerationTag, loopcontrols],
    )

    def strftime_now(form: str) -> str:
        return datetime.fromtimestamp(clock.wall(), UTC).astimezone().replace(tzinfo=None).strftime(form)

    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML and sorts keys; models are trained on plain JSON."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
