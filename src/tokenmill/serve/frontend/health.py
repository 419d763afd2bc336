"""GET /live, /ready, /health, /metrics: for probes and people.

Exists so that whoever runs a factory can ask this process how it is. It must not change anything.
"""

from __future__ import annotations

import msgspec

from tokenmill import __version__
from tokenmill.serve.frontend.admission_metrics import admission_health
from tokenmill.serve.frontend.http.messages import Answer, Request, Response
from tokenmill.serve.frontend.peer_link import PeerLink
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.worker_link import WorkerLink


class HealthApi:
    """The routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _request: Request) -> Answer:
        """200 as long as the process answers."""
        return Response(200, b'{"status":"live"}')

    async def ready(self, _request: Request) -> Answer:
        """200 when requests can be served, else 503 with the reason."""
        readiness = self._service.workers.readiness()
        if readiness.ready:
            return Response(200, b'{"status":"ready"}')
        body = {"status": "not ready", "notes": readiness.notes}
        return Response(503, msgspec.json.encode(body), headers=(("retry-after", "1"),))

    async def health(self, _request: Request) -> Answer:
        """How this frontend and its workers are, in JSON."""
        service = self._service
        readiness = service.workers.readiness()
        status = "degraded" if readiness.mode == "degraded" else "ok" if readiness.ready else "unavailable"
        body = {
            "status": status,
            "ready": readiness.ready,
            "mode": readiness.mode,
            "notes": readiness.notes,
            "model": service.model_name,
            "version": __version__,
            "in_flight": service.metrics.in_flight,
            "frontend": service.frontend_id,
            "frontends": [_peer(link) for link in service.peers.links()] if service.peers else [],
            "router": msgspec.structs.asdict(service.workers.router.stats()),
            "admission": admission_health(service.plant),
            "workers": service.workers.count(),
            "worker_list": [_worker(link) for link in service.workers.links()],
        }
        return Response(200, msgspec.json.encode(body))

    async def metrics(self, _request: Request) -> Answer:
        """All counts in Prometheus' text format."""
        return Response(
            200, self._service.metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _peer(link: PeerLink) -> dict[str, object]:
    card = link.card
    return {
        "id": card.frontend_id,
        "connected": link.connected,
        "url": card.url,
        "host": card.host,
        "pid": card.pid,
    }


def _worker(link: WorkerLink) -> dict[str, object]:
    card, metrics = link.card, link.metrics
    return {
        "id": card.worker_id,
        "role": card.role.value,
        "stage": card.stage,
        "state": link.state,
        "engine": card.engine,
        "address": card.address,
        "pid": card.pid,
        "streams": link.open_streams,
        **msgspec.structs.asdict(metrics),
        "kv_blocks_total": metrics.kv_blocks_total or card.kv_blocks,
    }
