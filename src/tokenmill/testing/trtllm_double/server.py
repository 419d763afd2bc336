"""The double's routes, put together. It must not know processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from tokenmill.clock import Clock
from tokenmill.testing.trtllm_double.cache import BlockCache
from tokenmill.testing.trtllm_double.completions import Completions
from tokenmill.testing.trtllm_double.faults import Faults
from tokenmill.testing.trtllm_double.fields import openapi
from tokenmill.testing.trtllm_double.http import HttpServer, Request
from tokenmill.testing.trtllm_double.options import EngineOptions, Quirks
from tokenmill.testing.trtllm_double.plant import Plant
from tokenmill.testing.trtllm_double.transfer import CacheSender

DEFAULT_BLOCKS = 1024
DEFAULT_SEQ_LEN = 4096


class TrtllmDouble:
    """A server in this process. ``start`` it, talk to ``url``, ``stop`` it.

    ``faults`` may be changed at any time, ``record`` read: also by ``POST`` and ``GET`` of ``/double``.
    """

    def __init__(
        self, clock: Clock, model: str, engine: EngineOptions | None = None, quirks: Quirks | None = None
    ) -> None:
        self._engine = engine = engine or EngineOptions()
        self._quirks = quirks = quirks or Quirks()
        folder = Path(model)
        self.model = folder.name if folder.is_dir() else model
        window = engine.max_seq_len or DEFAULT_SEQ_LEN
        config = engine.kv_cache_config
        blocks = config.max_tokens // config.tokens_per_block if config.max_tokens else DEFAULT_BLOCKS
        self._cache = BlockCache(
            blocks,
            config.tokens_per_block,
            window,
            most_events=config.event_buffer_max_size,
            reuse=config.enable_block_reuse,
        )
        self._cache.events_lost_every = quirks.events_lost
        self._plant = Plant(self._cache, quirks, engine.max_batch_size)
        self._sender = CacheSender(clock)
        self._completions = Completions(self.model, self._plant, self._sender, engine, quirks, window, clock)
        self._http = HttpServer(self._handle)
        self._steps: asyncio.Task[None] | None = None
        self.healthy = True
        self.looks = 0
        """How often somebody asked for the health."""
        self.url = ""

    @property
    def completions(self) -> Completions:
        """Where faults are set and what was seen is kept."""
        return self._completions

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. Cancelled: call ``stop``."""
        await self._sender.start()
        self._steps = asyncio.create_task(self._plant.run(), name="steps of the double")
        port = await self._http.start(host, port)
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop everything."""
        await self._http.stop()
        await self._completions.stop()
        await self._sender.stop()
        if self._steps is not None:
            self._steps.cancel()
            await asyncio.gather(self._steps, return_exceptions=True)

    async def _handle(self, request: Request) -> None:
        """Answer a request. Cancelled: it is dropped."""
        path = request.path.partition("?")[0]
        match request.method, path:
            case "POST", "/v1/completions":
                await self._completions.answer(request)
            case "POST", "/kv_cache_events":
                await asyncio.sleep(self._quirks.quiet_ms / 1000)
                request.answer.json(self._cache.drain_events())
            case "GET", "/health":
                self.looks += 1
                request.answer.whole(200 if self.healthy else 503, b"")
            case "GET", "/version":
                request.answer.json({"version": self._quirks.version})
            case "GET", "/v1/models":
                card = {"id": self.model, "object": "model", "created": 0, "owned_by": "tensorrt_llm"}
                request.answer.json({"object": "list", "data": [card]})
            case "GET", "/metrics" if self._quirks.mute:
                await asyncio.Event().wait()
            case "GET", "/metrics":
                request.answer.json(self._iterations())
            case "GET", "/prometheus/metrics" if self._quirks.prometheus:
                request.answer.whole(200, self._prometheus().encode(), "text/plain")
            case "GET", "/openapi.json" if not self._quirks.no_openapi:
                request.answer.json(openapi(self._completions.params_fields))
            case "GET", "/double":
                request.answer.json(self._completions.record)
            case "POST", "/double":
                self._completions.faults = msgspec.json.decode(request.body, type=Faults)
                request.answer.json({})
            case _:
                request.answer.json({"detail": "Not Found"}, 404)

    def _iterations(self) -> list[dict[str, object]]:
        """Rows since the last call; none where the server reads them for Prometheus."""
        rows = list(self._plant.iterations)
        self._plant.iterations.clear()
        return rows if self._engine.enable_iter_perf_stats and not self._quirks.prometheus else []

    def _prometheus(self) -> str:
        cache, plant = self._cache, self._plant
        values = {
            "num_requests_running": plant.running,
            "num_requests_waiting": plant.waiting,
            "kv_cache_utilization": cache.used / cache.capacity,
            "kv_cache_max_blocks": cache.capacity,
            "kv_cache_tokens_per_block": cache.block_tokens,
            "kv_cache_reused_blocks_total": cache.reused,
            "kv_cache_missed_blocks_total": cache.missed,
        }
        label = f'model_name="{self.model}",engine_type="pytorch"'
        return "".join(f"trtllm_{name}{{{label}}} {float(value)}\n" for name, value in values.items())
