"""Frontend -> worker: a request for tokens."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.text import TextRequest


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen. Validated by the frontend; engines trust it.

    ``temperature`` 0 is greedy. ``top_k`` 0 is off. ``seed`` is always set by the frontend: the
    draw for output position i depends on (seed, i) alone, so that a handoff, a preemption or a
    migration gives the tokens that one undisturbed worker would. ``logprobs``: None is off, else
    how many alternatives (0 to 20) to report beside the chosen token. ``prompt_logprobs`` likewise
    for the prompt's tokens. ``logit_bias``: token id -> added to the logit. ``constraints``: fields of the
    client's request that shape the output (``response_format``, ...), unread, for engines that can.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    constraints: dict[str, Any] = {}


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to continue.

    ``prompt``: token ids, never empty. ``output``: tokens already generated for this request and
    already delivered to the client (a replay after a worker was lost); the first new token has
    output position ``len(output)``. ``role`` says what the worker is asked for:

    - ``both``: prefill and decode here.
    - ``prefill``: compute the cache, offer it (``Offered``), sample exactly one token, then finish
      with reason ``handoff`` (or the real reason, if that token ended the request).
    - ``decode``: fetch the cache that ``handoff`` describes and go on with the second new token.
      If the cache does not come, the worker computes it itself and sends from the first new token
      on; the reader drops what it has already seen.

    ``priority``: larger is sooner. ``cache_salt``: separates prefix caches of different tenants. ``text``:
    what a worker whose engine takes text is asked; the prompt is empty then.
    """

    request_id: RequestId
    prompt: list[int]
    sampling: Sampling
    output: list[int] = []
    role: Role = Role.BOTH
    handoff: Handoff | None = None
    priority: int = 0
    cache_salt: str = ""
    text: TextRequest | None = None

    @property
    def tokens(self) -> int:
        """Tokens to be in the cache before the next one is made; estimated where they are text."""
        return len(self.prompt) + len(self.output) if self.text is None else self.text.tokens
