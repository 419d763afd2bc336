"""``TokenmillConnector``: vLLM's hooks, carried to the objects that decide and the thread that moves.

Runs in vLLM's environment; read against vLLM 0.32.0. One is made in the scheduler's process and one in each
worker's, which may be the same process. It must not decide anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.logger import init_logger
from vllm.v1.metrics.cache_hit_source import CacheHitSource
from vllm.v1.request import RequestStatus

from tokenmill.clock import SystemClock
from tokenmill.serve.engines.vllm.connector import facts
from tokenmill.serve.engines.vllm.connector.cache import held_back, memory_layout
from tokenmill.serve.engines.vllm.connector.giving import Giving
from tokenmill.serve.engines.vllm.connector.memory import SharedAllocation, memory_of
from tokenmill.serve.engines.vllm.connector.mover import Mover
from tokenmill.serve.engines.vllm.connector.offers import asks_for_offer, to_params
from tokenmill.serve.engines.vllm.connector.orders import Orders
from tokenmill.serve.engines.vllm.connector.settings import read_settings
from tokenmill.serve.engines.vllm.connector.taking import Place, Taking
from tokenmill.serve.transfer.control import Ticket, decode_ticket, encode_ticket
from tokenmill.serve.transfer.drivers import open_transport

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

_log = init_logger(f"vllm.{__name__}")

_WHOLE = (RequestStatus.FINISHED_LENGTH_CAPPED,)
"""A prompt whose first token ends the answer needs no decode: its blocks are not kept for one."""


@dataclass
class _Metadata(KVConnectorMetadata):  # type: ignore[misc]
    orders: Orders = field(default_factory=Orders)


@dataclass
class _Handshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """What a worker tells its scheduler: where its memory can be read, and how a block looks inside."""

    ticket: bytes
    shapes: str


class TokenmillConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Pulls whole blocks, all groups of layers, from the engine that computed them."""

    _cache_hit_source = CacheHitSource.P2P

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        facts.check_supported(vllm_config, kv_cache_config)
        self._settings = read_settings(self._kv_transfer_config.kv_connector_extra_config)
        self._groups = facts.groups_of(kv_cache_config)
        self._layout = memory_layout(facts.regions_of(kv_cache_config), kv_cache_config.num_blocks)
        self._orders = Orders()
        # The scheduler's side.
        self._giving = Giving(self._groups, lease_s=self._settings.lease_s)
        self._taking = Taking(self._groups)
        self._asked: dict[str, Request] = {}
        self._held: dict[str, list[KVCacheBlock]] = {}
        self._ranks: list[Ticket] = []
        self._fingerprint = ""
        # The worker's side.
        self._allocation: SharedAllocation | None = None
        self._mover: Mover | None = None
        self._handshake: _Handshake | None = None

    # The scheduler's side -----------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: Mapping[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Learn where the workers' memories can be read; by pipeline and tensor rank."""
        told = [each for _, each in sorted(metadata.items()) if isinstance(each, _Handshake)]
        self._ranks = [decode_ticket(each.ticket) for each in told]
        ranks = [(each.shapes, rank.layout.token_bytes) for each, rank in zip(told, self._ranks, strict=True)]
        self._fingerprint = facts.fingerprint_of(self._vllm_config, self._groups, ranks)

    def on_new_request(self, request: Request) -> None:
        """Note what a request is to be decoded elsewhere, or was computed elsewhere."""
        params = request.kv_transfer_params
        if asks_for_offer(params) and request.max_tokens == 1:
            self._asked[request.request_id] = request
        self._taking.arrived(
            request.request_id,
            request.num_prompt_tokens,
            params,
            fingerprint=self._fingerprint,
            ranks=len(self._ranks),
        )

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Tell how many more tokens can be fetched."""
        tokens = self._taking.loadable_tokens(request.request_id, num_computed_tokens)
        return tokens, tokens > 0

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        """Tell that all groups are fetched."""
        return tuple(range(len(self._groups)))

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Plan the transfer into the blocks that a request got."""
        tables = [
            [Place(each.block_id, each.block_hash is not None) for each in group] for group in blocks.blocks
        ]
        self._taking.allocated(request.request_id, num_external_tokens, tables, self._orders)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Return the step's orders, with offers of the prompts that it completes."""
        for request_id, request in list(self._asked.items()):
            scheduled = scheduler_output.num_scheduled_tokens.get(request_id, 0)
            computed, prompt = request.num_computed_tokens, request.num_prompt_tokens
            if computed < prompt <= computed + scheduled:
                self._declare(request_id, request.num_prompt_tokens)
        orders, self._orders = self._orders, Orders()
        return _Metadata(orders)

    def _declare(self, request_id: str, prompt_tokens: int) -> None:
        assert self._kv_cache_manager is not None
        tables = self._kv_cache_manager.get_blocks(request_id).blocks
        ids = [[each.block_id for each in table] for table in tables]
        self._let_go(request_id)
        give = self._giving.declare(request_id, prompt_tokens, ids)
        if give is None:
            return
        self._orders.gives.append(give)
        held = [
            table[place]
            for group, table in zip(self._groups, tables, strict=True)
            for place in held_back(group, prompt_tokens)
        ]
        if held:
            self._kv_cache_manager.block_pool.touch(held)
            self._held[request_id] = held

    def _let_go(self, request_id: str) -> None:
        held = self._held.pop(request_id, [])
        if held:
            assert self._kv_cache_manager is not None
            self._kv_cache_manager.block_pool.free_blocks(held)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, object] | None]:
        """Answer an offer and keep the blocks, or forget the request."""
        request_id = request.request_id
        self._taking.finished(request_id, self._orders)
        self._asked.pop(request_id, None)
        if request.status in _WHOLE:
            offer = self._giving.offer(request_id, self._fingerprint, self._ranks)
            if offer is not None:
                return True, to_params(offer)
        if self._giving.aborted(request_id):
            self._orders.withdrawn.append(request_id)
        self._let_go(request_id)
        return False, None

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, object] | None]:
        """As above, where vLLM knows one group only."""
        return self.request_finished_all_groups(request, (block_ids,))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Learn what the workers have done."""
        for request_id in connector_output.finished_recving or ():
            self._taking.received(request_id)
        for request_id in connector_output.finished_sending or ():
            self._let_go(request_id)

    # The worker's side --------------------------------------------------------------------------------

    def get_mem_pool_context(self) -> AbstractContextManager[object] | None:
        """Have the cache allocated where other processes of this host can map it, if it is on the host."""
        if self._vllm_config.device_config.device_type != "cpu":
            return None
        self._allocation = SharedAllocation(self._layout, self._kv_cache_config.num_blocks)
        return self._allocation

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Open the transport on the cache."""
        settings = self._settings
        parallel = self._vllm_config.parallel_config
        memory = memory_of(self._allocation, self._layout, self._kv_cache_config.num_blocks, kv_caches)
        transport = open_transport(
            settings.transports,
            host=settings.host,
            run_dir=Path(settings.run_dir) if settings.run_dir else None,
            clock=SystemClock(),
            checksums=settings.checksums,
        )
        self._mover = Mover(
            memory,
            transport,
            rank=parallel.rank % (parallel.tensor_parallel_size * parallel.pipeline_parallel_size),
            lease_s=settings.lease_s,
            tell=_log.warning,
        )
        self._handshake = _Handshake(encode_ticket(self._mover.start()), facts.shapes_of(kv_caches))
        _log.info(
            "KV cache is handed over by %s (%d planes, pages of %d bytes, %s)",
            transport.name,
            self._layout.planes,
            self._layout.token_bytes,
            "copied out" if memory.region is None else "mapped",
        )

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Tell the scheduler where this worker's memory can be read."""
        return self._handshake

    def start_load_kv(self, forward_context: ForwardContext, **_kwargs: object) -> None:
        """Start this step's transfers; nothing is waited for."""
        if self._mover is not None:
            self._mover.take(self._bound().orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded during a step."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: object, **_kwargs: object
    ) -> None:
        """Blocks are read where they are."""

    def wait_for_save(self) -> None:
        """Lend out what this step has computed."""
        orders = self._bound().orders
        if self._mover is None or not orders.gives:
            return
        ready = None
        if self._vllm_config.device_config.device_type != "cpu":
            event = torch.Event()
            event.record()
            ready = event.synchronize
        self._mover.give(orders.gives, ready)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Tell what has ended."""
        if self._mover is None:
            return KVConnectorTransferResults()
        results = self._mover.results(finished_req_ids)
        return KVConnectorTransferResults(
            finished_sending=results.sent, finished_recving=results.received, failed_recving=results.failed
        )

    def shutdown(self) -> None:
        """Close the transport."""
        if self._mover is not None:
            self._mover.stop()

    def _bound(self) -> _Metadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, _Metadata)
        return metadata
