"""What ``tokenmill doctor`` asks of servers that stages attach to: are they there, have they the model.

Exists apart because it is the one check that speaks to others. It must not know how requests are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from tokenmill.clock import SystemClock
from tokenmill.errors import TokenmillError
from tokenmill.serve.engines.openai.server import ServerFacts, ask, base_of
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.keys import hidden, read_key
from tokenmill.spec.derive import TEXT_ENGINES, model_of
from tokenmill.spec.factory import Factory
from tokenmill.spec.stage import Stage

_SHOWN: Final = 10


def attached_stages(factory: Factory) -> list[Stage]:
    """Return the stages whose servers can be asked."""
    return [stage for stage in factory.stages if stage.engine in TEXT_ENGINES]


def what_server_has(factory: Factory, stage: Stage, environment: Mapping[str, str]) -> str:
    """Ask a stage's server for its models, and say what it has. Raises ConfigError where it lacks ours or
    refuses the key, WorkerLost where it does not answer."""
    model = model_of(factory, stage)
    key = read_key(stage.attach_key, environment)
    try:
        facts = asyncio.run(_ask(stage.attach, key, model.path, model.name))
    except TokenmillError as error:
        raise type(error)(hidden(error.message, key)) from None
    if facts.model:
        context = f", context {facts.context_tokens} tokens" if facts.context_tokens else ""
        return f"{stage.attach} has {facts.model}{context}"
    more = f" and {len(facts.offers) - _SHOWN} more" if len(facts.offers) > _SHOWN else ""
    return f"{stage.attach} has {', '.join(facts.offers[:_SHOWN]) or 'no models'}{more}"


async def _ask(attach: str, key: str, path: str, name: str) -> ServerFacts:
    client = HttpClient(base_of(attach), api_key=key)
    try:
        return await ask(client, path, name, SystemClock(), 0.0)
    finally:
        await client.close()
