"""The sections of the factory file about the front door: HTTP, routing, migration, admission.

Defaults are those of ``spec.process``, so that the two cannot drift. Knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, field

from tokenmill.spec.parts import Above0, AtLeast0, AtLeast0Float, AtLeast1, Part, Port, Seconds
from tokenmill.spec.process import FrontendConfig

_FRONTEND: Final = FrontendConfig()

RouterPrefill = Literal["auto", "local", "remote"]


class Frontend(Part, frozen=True, kw_only=True):
    """The front door."""

    port: Port = _FRONTEND.port
    """Port to listen on, shared by all replicas; 0: any free one. On one machine that cannot share ports
    (all but Linux) replica i takes ``port + i``."""

    host: str = _FRONTEND.host
    """Address to listen on; 0.0.0.0 opens the factory to the network."""

    replicas: AtLeast0 = 1
    """How many front doors; on one machine they share the port, and choose workers as one would."""

    peer_sync: bool = _FRONTEND.peer_sync
    """Tell the other front doors what is routed, so that all choose workers as one would."""

    peer_interval_ms: Above0 = _FRONTEND.peer_interval_ms
    """The least time between two messages to another front door, in milliseconds: what is routed here is
    known there so much later."""

    max_body_bytes: AtLeast1 = _FRONTEND.max_body_bytes
    """Largest request body; a larger one is answered with 413."""

    max_prompt_tokens: AtLeast0 = _FRONTEND.max_prompt_tokens
    """Longest prompt; 0: what the model's context leaves."""

    max_output_tokens: AtLeast0 = _FRONTEND.max_output_tokens
    """Largest ``max_tokens``; 0: what the model's context leaves."""

    default_max_tokens: AtLeast0 = _FRONTEND.default_max_tokens
    """``max_tokens`` where a request names none; 0: 16 for completions, the rest of the context for chats."""

    max_header_bytes: AtLeast1 = _FRONTEND.max_header_bytes
    """Largest request head; a larger one is answered with 431."""

    max_headers: AtLeast1 = _FRONTEND.max_headers
    """Most headers in a request; more are answered with 431."""

    max_url_bytes: AtLeast1 = _FRONTEND.max_url_bytes
    """Longest path and query; a longer one is answered with 414."""

    max_connections: AtLeast1 = _FRONTEND.max_connections
    """Most open client connections; further ones are refused with 503."""

    max_streams: AtLeast1 = _FRONTEND.max_streams
    """Most requests being generated or waiting for it, streamed or not; further ones are refused with 503."""

    max_pipelined: AtLeast1 = _FRONTEND.max_pipelined
    """Requests waiting on a connection behind the one being served before no more is read from it."""

    max_buffered_mb: AtLeast1 = _FRONTEND.max_buffered_mb
    """Memory in MiB for request bodies that are still arriving, over all connections; above it the largest
    are refused with 503."""

    idle_timeout_s: Seconds = _FRONTEND.idle_timeout_s
    """How long a kept-alive connection may be silent, in seconds."""

    header_timeout_s: Seconds = _FRONTEND.header_timeout_s
    """How long a request's head may take to arrive, in seconds; then 408."""

    read_timeout_s: Seconds = _FRONTEND.read_timeout_s
    """How long a whole request may take to arrive, in seconds; then 408."""

    write_timeout_s: Seconds = _FRONTEND.write_timeout_s
    """How long a client may leave what we send unread before it is dropped, in seconds."""

    write_buffer_bytes: AtLeast1 = _FRONTEND.write_buffer_bytes
    """Unread bytes of one client above which its generation is paused."""

    tls_cert: str = _FRONTEND.tls_cert
    """Certificate file (PEM, with those above it); with it clients speak https. A relative path is seen from
    this file. Empty: plain http."""

    tls_key: str = _FRONTEND.tls_key
    """File with the certificate's private key (PEM, not encrypted); empty: it is in ``tls_cert``."""

    tls_client_ca: str = _FRONTEND.tls_client_ca
    """Authorities (PEM) that must have signed a client's certificate; empty: clients need none."""

    cors_origins: list[str] = field(default_factory=list)
    """Web origins (https://example.com) whose pages may read answers, or "*" for all; empty: none."""

    cors_credentials: bool = _FRONTEND.cors_credentials
    """Let those pages send their user's cookies and client certificates; not with "*"."""

    request_timeout_s: Seconds = _FRONTEND.request_timeout_s
    """Longest time a request may take, in seconds; then 504."""

    write_interval_ms: Annotated[float, Meta(ge=0, le=1000)] = _FRONTEND.write_interval_ms
    """The least time between two writes to one client, in milliseconds: tokens that come sooner share the
    next write. A stream whose tokens are farther apart never waits; 0: each is written at once."""

    tokenizer_cache_mb: AtLeast0 = _FRONTEND.tokenizer_cache_mb
    """Memory in MiB for turns of chats that were turned into tokens before; 0: nothing is kept."""

    worker_wait_s: Seconds = _FRONTEND.worker_wait_s
    """How long a request waits for a worker to become ready before it gets 503, in seconds."""

    drain_timeout_s: Seconds = _FRONTEND.drain_timeout_s
    """How long a shutdown waits for running requests, in seconds."""

    explain_requests: AtLeast0 = _FRONTEND.explain_requests
    """Of how many of the last requests GET /v1/explain/{request_id} can tell what happened; 0: of none. One
    takes about 3 kB."""


class Router(Part, frozen=True, kw_only=True):
    """How requests find their workers."""

    policy: str = _FRONTEND.router_policy
    """kv goes where the prompt's prefix is cached already; least-loaded, power-of-two, round-robin and random
    balance load or ignore it; session keeps a conversation where it is. Or the name of a policy of your own
    that is installed."""

    prefill: RouterPrefill = "auto"
    """Where a prompt is computed: local (on the worker that decodes), remote (on a prefill worker), or auto:
    whichever is predicted to be better."""

    local_share: Annotated[float, Meta(ge=0, le=1)] = _FRONTEND.router_local_share
    """With ``prefill: auto``, the least share of prompts that are computed on workers that decode, where
    there is a choice; ``tokenmill plan --write`` gives what its mixed plants count on. 0: as many as are
    predicted to be better off."""

    temperature_ms: AtLeast0Float = _FRONTEND.router_temperature_ms
    """0: always the worker that costs least. Else one that costs so many milliseconds more is chosen 1/e as
    often."""

    weights: dict[str, AtLeast0Float] = field(default_factory=dict)
    """Weights of the cost function that are to differ from the usual, by name."""

    kv_events: bool = _FRONTEND.router_kv_events
    """Ask workers what they cache. If not, a prompt is taken to be cached where it went."""

    index_blocks: AtLeast1 = _FRONTEND.router_index_blocks
    """Most cached blocks that a front door remembers, about 100 bytes each."""

    predicted_ttl_s: Seconds = _FRONTEND.router_predicted_ttl_s
    """How long a prompt is taken to be cached where it went, before the worker's events say so, in
    seconds."""

    approximate_ttl_s: Seconds = _FRONTEND.router_approximate_ttl_s
    """The same for workers that give no events."""

    session_header: str = _FRONTEND.router_session_header
    """The request header that names a conversation, for the session policy."""


class Migration(Part, frozen=True, kw_only=True):
    """What happens to a running request when its worker dies, stalls or leaves: it goes on at another one,
    and its client gets every token exactly once."""

    max_attempts: AtLeast1 = _FRONTEND.migration_max_attempts
    """How many workers a request may be given, one after the other. 1 switches migration off."""

    max_tokens: AtLeast0 = _FRONTEND.migration_max_tokens
    """Longest prompt plus output so far that another worker is asked to read anew, in tokens; 0: any."""

    stall_timeout_s: Seconds = _FRONTEND.migration_stall_timeout_s
    """After how long without a sign of life a worker's requests go on elsewhere, in seconds. Workers that are
    busy, however busy, report several times a second."""

    step_timeout_s: Seconds = _FRONTEND.migration_step_timeout_s
    """The same for a worker that reports but whose engine, with work to do, has ended no step, in seconds. A
    step that reads a piece of a long prompt on a slow device takes seconds."""


class Admission(Part, frozen=True, kw_only=True):
    """What happens to requests while all workers are busy: they wait in a fair line, or are told when to come
    back."""

    enabled: bool = _FRONTEND.admission_enabled
    """Let requests wait at the front door; else each goes to a worker and waits there."""

    max_queued: AtLeast1 = _FRONTEND.admission_max_queued
    """Most sequences that wait for a worker; then who has the least right to his place gets 429."""

    max_queued_tokens: AtLeast1 = _FRONTEND.admission_max_queued_tokens
    """Most prompt tokens that wait."""

    max_wait_s: Seconds = _FRONTEND.admission_max_wait_s
    """How long a request waits before it gets 503, in seconds."""

    busy_kv_share: Annotated[float, Meta(gt=0, le=1)] = _FRONTEND.admission_busy_kv_share
    """A worker is busy when more than this share of its KV blocks is held: running sequences need the rest to
    grow into."""

    busy_prefill_s: Seconds = _FRONTEND.admission_busy_prefill_s
    """A worker is busy when it has prefill queued for more than so many seconds, at its measured speed."""

    busy_prefill_tokens: AtLeast1 = _FRONTEND.admission_busy_prefill_tokens
    """The same in tokens, for a worker whose speed is not known yet."""

    busy_spare_places: AtLeast0Float = _FRONTEND.admission_busy_spare_places
    """A worker is busy when its batch is full and so many sequences wait for a place in it, as a share of the
    batch."""

    level_turn_s: Seconds = _FRONTEND.admission_level_turn_s
    """Higher priorities go first, but one that had nothing admitted for so many seconds gets a turn."""

    tenant_header: str = _FRONTEND.admission_tenant_header
    """The request header that names a tenant; requests without it are one tenant together."""

    tenant_weights: dict[str, Above0] = field(default_factory=dict)
    """Shares of tenants by name; 1 for all others. Under load one of weight 2 gets twice the tokens."""

    charge_input: AtLeast0Float = _FRONTEND.admission_charge_input
    """What a prompt token that is computed counts in its tenant's share."""

    charge_cached: AtLeast0Float = _FRONTEND.admission_charge_cached
    """What a prompt token that is found in a cache counts."""

    charge_output: AtLeast0Float = _FRONTEND.admission_charge_output
    """What a generated token counts."""
