"""GET /live, /ready, /health, /metrics: for probes and people.

Exists so that whoever runs a factory can ask this process how it is. It must not change anything.
"""

from __future__ import annotations

import msgspec

from tokenmill import __version__
from tokenmill.decide.router.stages import Readiness
from tokenmill.serve.frontend.admission_metrics import admission_health
from tokenmill.serve.frontend.http.messages import Answer, Request, Response
from tokenmill.serve.frontend.peer_link import PeerLink
from tokenmill.serve.frontend.served import ServedModel
from tokenmill.serve.frontend.service import Service
from tokenmill.serve.frontend.worker_link import WorkerLink
from tokenmill.serve.frontend.workers import count_workers


class HealthApi:
    """The routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _request: Request) -> Answer:
        """200 as long as the process answers."""
        return Response(200, b'{"status":"live"}')

    async def ready(self, _request: Request) -> Answer:
        """200 when requests for some model can be served, else 503 with the reason."""
        found = self._readiness()
        if any(readiness.ready for readiness in found.values()):
            return Response(200, b'{"status":"ready"}')
        body = {"status": "not ready", "notes": _notes(found)}
        return Response(503, msgspec.json.encode(body), headers=(("retry-after", "1"),))

    async def health(self, _request: Request) -> Answer:
        """How this frontend and its workers are, in JSON."""
        service = self._service
        found = self._readiness()
        links = [link for model in service.models.all for link in model.workers.links()]
        body = {
            "status": _status(list(found.values())),
            "ready": any(readiness.ready for readiness in found.values()),
            "notes": _notes(found),
            "models": {model.name: _model(model, found[model.name]) for model in service.models.all},
            "version": __version__,
            "in_flight": service.metrics.in_flight,
            "frontend": service.frontend_id,
            "frontends": [_peer(link) for link in service.peers.links()] if service.peers else [],
            "workers": count_workers(links),
            "worker_list": [_worker(link) for link in links],
        }
        if len(service.models.all) == 1:  # what of several is told by model, of one is told at the top too
            sole = service.models.first
            body = {"model": sole.name, **_model(sole, found[sole.name]), **body}
        return Response(200, msgspec.json.encode(body))

    def _readiness(self) -> dict[str, Readiness]:
        return {model.name: model.workers.readiness() for model in self._service.models.all}

    async def metrics(self, _request: Request) -> Answer:
        """All counts in Prometheus' text format."""
        return Response(
            200, self._service.metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _status(found: list[Readiness]) -> str:
    ready = [readiness for readiness in found if readiness.ready]
    if not ready:
        return "unavailable"
    whole = len(ready) == len(found) and all(readiness.mode != "degraded" for readiness in ready)
    return "ok" if whole else "degraded"


def _notes(found: dict[str, Readiness]) -> list[str]:
    """What is not as it should be; of several models with the model's name."""
    if len(found) == 1:
        return [note for readiness in found.values() for note in readiness.notes]
    return [f"{name}: {note}" for name, readiness in found.items() for note in readiness.notes]


def _model(model: ServedModel, readiness: Readiness) -> dict[str, object]:
    return {
        "ready": readiness.ready,
        "mode": readiness.mode,
        "in_flight": model.metrics.in_flight,
        "router": msgspec.structs.asdict(model.workers.router.stats()),
        "admission": admission_health(model.plant),
        "workers": model.workers.count(),
    }


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
        "model": card.model,
        "state": link.state,
        "engine": card.engine,
        "address": card.address,
        "pid": card.pid,
        "streams": link.open_streams,
        **msgspec.structs.asdict(metrics),
        "kv_blocks_total": metrics.kv_blocks_total or card.kv_blocks,
        "circuit": metrics.circuit.name.lower().replace("_", "-"),
    }
