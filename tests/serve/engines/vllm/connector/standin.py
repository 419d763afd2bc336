"""As much of vLLM 0.32.0 as the connector touches, and one engine's step: for a process without vLLM.

Run as a program: two engines of a model with two groups of layers hand a cache over through the real hooks.
"""

from __future__ import annotations

import sys
import time
import types
from types import SimpleNamespace

WINDOW = 64
BLOCKS = 64
PAGE = 256
PROMPT = 127


def module(name: str, **content: object) -> None:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    sys.modules[name] = made


class FullAttentionSpec:
    block_size = 32


class SlidingWindowSpec:
    block_size = 32
    sliding_window = WINDOW


class KVConnectorBase_V1:
    def __init__(self, config, role, kv_cache_config):
        self._vllm_config = config
        self._kv_transfer_config = config.kv_transfer_config
        self._kv_cache_config = kv_cache_config
        self._kv_cache_manager = None
        self._metadata = None

    def _get_connector_metadata(self):
        return self._metadata


def install() -> None:
    base = "vllm.distributed.kv_transfer.kv_connector.v1.base"
    module(
        base,
        KVConnectorBase_V1=KVConnectorBase_V1,
        KVConnectorHandshakeMetadata=object,
        KVConnectorMetadata=object,
        KVConnectorRole=object,
        KVConnectorTransferResults=SimpleNamespace,
        SupportsHMA=type("SupportsHMA", (), {}),
    )
    module("vllm", __version__="0.32.0")
    names = ("FullAttentionSpec", "SlidingWindowSpec")
    kinds = {name: globals()[name] for name in names}
    others = {
        name: type(name, (), {}) for name in ("KVCacheSpec", "MLAAttentionSpec", "UniformTypeKVCacheSpecs")
    }
    module("vllm.v1.kv_cache_interface", **kinds, **others)
    log = SimpleNamespace(warning=lambda text, *_: sys.stdout.write(f"{text}\n"), info=lambda *_: None)
    module("vllm.logger", init_logger=lambda _: log)
    module("vllm.v1.metrics.cache_hit_source", CacheHitSource=SimpleNamespace(P2P="p2p"))
    module("vllm.v1.request", RequestStatus=SimpleNamespace(FINISHED_LENGTH_CAPPED="length"))


class Blocks:
    """A block manager with one request, its tables given; and its pool, which counts."""

    def __init__(self, tables: list[list[int]], cached: int = 0) -> None:
        self.blocks = [
            [
                SimpleNamespace(block_id=block, block_hash=b"h" if place < cached and block else None)
                for place, block in enumerate(table)
            ]
            for table in tables
        ]
        self.block_pool = self
        self.touched: list[int] = []

    def get_blocks(self, _):
        return self

    def touch(self, blocks):
        self.touched += [each.block_id for each in blocks]

    def free_blocks(self, blocks):
        for each in blocks:
            self.touched.remove(each.block_id)


class Engine:
    """Scheduler and worker in one process, as with vLLM's executor "uni"."""

    def __init__(self, connector: type, tables: list[list[int]], cached: int = 0) -> None:
        import torch

        config = SimpleNamespace(
            parallel_config=SimpleNamespace(
                decode_context_parallel_size=1,
                prefill_context_parallel_size=1,
                tensor_parallel_size=1,
                pipeline_parallel_size=1,
                rank=0,
            ),
            num_prefill_lookahead_tokens=0,
            kv_transfer_config=SimpleNamespace(kv_connector_extra_config={"lease_s": 20.0}),
            device_config=SimpleNamespace(device_type="cpu"),
            model_config=SimpleNamespace(model="/models/m", dtype="bf16", architectures=["A"]),
            cache_config=SimpleNamespace(cache_dtype="auto"),
        )
        size = 2 * BLOCKS * PAGE
        regions = [
            SimpleNamespace(size=size, offset=0, layers=["a", "b"], layer_stride=size // 2, block_stride=PAGE)
        ] * 2
        groups = [SimpleNamespace(kv_cache_spec=kind()) for kind in (FullAttentionSpec, SlidingWindowSpec)]
        cache = SimpleNamespace(
            kv_cache_tensors=regions,
            kv_cache_groups=groups,
            num_blocks=BLOCKS,
            has_mamba_layers=False,
            host_group_ids=(),
            transfer_group_ids=(0, 1),
        )
        self.scheduler, self.worker = (connector(config, None, cache) for _ in range(2))
        self.manager = self.scheduler._kv_cache_manager = Blocks(tables, cached)
        with self.worker.get_mem_pool_context():
            self.cache = torch.zeros(size, dtype=torch.int8)
        pages = self.cache.view(torch.uint8).view(2, BLOCKS, PAGE)
        self.pages = pages
        self.worker.register_kv_caches({"a": pages[0], "b": pages[1]})
        self.scheduler.set_xfer_handshake_metadata_pp_aware({(0, 0): self.worker.get_handshake_metadata()})

    def step(self, scheduled: dict[str, int], finished: tuple[str, ...] = ()) -> SimpleNamespace:
        meta = self.scheduler.build_connector_meta(SimpleNamespace(num_scheduled_tokens=scheduled))
        self.worker._metadata = meta
        self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        results = self.worker.get_transfer_results(set(finished))
        self.scheduler.update_connector_output(results)
        return results

    def until(self, name: str) -> SimpleNamespace:
        deadline = time.monotonic() + 30
        while True:
            results = self.step({})
            if getattr(results, name):
                return results
            assert time.monotonic() < deadline
            time.sleep(0.001)


def request(name: str, params: dict, **fields: object) -> SimpleNamespace:
    values = {"max_tokens": 1, "num_computed_tokens": 0, "num_prompt_tokens": PROMPT, "status": "length"}
    return SimpleNamespace(request_id=name, kv_transfer_params=params, **{**values, **fields})


def main() -> None:
    install()
    from tokenmill_connector import TokenmillConnector

    third_party = {
        "structlog",
        "xxhash",
        "aiohttp",
        "uvloop",
        "zmq",
        "yaml",
        "tokenizers",
        "httptools",
        "jinja2",
    }
    assert not third_party & set(sys.modules), third_party & set(sys.modules)
    theirs, ours = [[1, 2, 3, 4], [11, 12, 13, 14]], [[21, 22, 23, 24], [0, 32, 33, 34]]
    giver, taker = Engine(TokenmillConnector, theirs), Engine(TokenmillConnector, ours, cached=1)
    giver.pages.random_(0, 256)

    asked = request("p", {"do_remote_decode": True})
    giver.scheduler.on_new_request(asked)
    giver.step({"p": 100})  # a chunk
    assert not giver.manager.touched
    asked.num_computed_tokens = 100
    giver.step({"p": 27})
    assert giver.manager.touched == [12], "what vLLM drops now, and the taker needs"
    kept, params = giver.scheduler.request_finished_all_groups(asked, tuple(theirs))
    assert kept
    assert not giver.step({}, ("p",)).finished_sending

    came = request("d", params)
    taker.scheduler.on_new_request(came)
    assert taker.scheduler.get_num_new_matched_tokens(came, 32) == (PROMPT - 1 - 32, True)
    assert taker.scheduler.get_loaded_kv_cache_group_ids(came) == (0, 1)
    taker.scheduler.update_state_after_alloc(came, taker.manager, PROMPT - 1 - 32)
    results = taker.until("finished_recving")
    assert (results.finished_recving, results.failed_recving) == ({"d"}, set())
    for source, target in ((2, 22), (3, 23), (4, 24), (12, 32), (13, 33), (14, 34)):
        assert (giver.pages[:, source] == taker.pages[:, target]).all(), (source, target)
    assert not taker.pages[:, [0, 21]].any(), "the null block and what was cached are left alone"
    assert giver.until("finished_sending").finished_sending == {"p"}
    assert not giver.manager.touched

    stopped = request("s", {"do_remote_decode": True}, status="aborted")
    giver.scheduler.on_new_request(stopped)
    giver.step({"s": PROMPT})
    assert giver.manager.touched == [12]
    assert giver.scheduler.request_finished(stopped, []) == (False, None)
    assert not giver.manager.touched
    assert not giver.step({}, ("s",)).finished_sending

    foreign = request("f", {"do_remote_prefill": True, "remote_block_ids": [[1]]})
    taker.scheduler.on_new_request(foreign)
    taker.scheduler.update_state_after_alloc(foreign, taker.manager, 10)
    assert taker.until("failed_recving").failed_recving == {"f"}

    plain = request("n", None)
    for engine in (giver, taker):
        engine.scheduler.on_new_request(plain)
        assert engine.scheduler.get_num_new_matched_tokens(plain, 0) == (0, False)
        assert engine.scheduler.request_finished(plain, []) == (False, None)
        engine.worker.shutdown()
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
