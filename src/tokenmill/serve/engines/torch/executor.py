"""Carries out step plans with PyTorch: the inner half of the embedded engine.

A plan is flattened into one row of tokens; the model writes their KV into the paged cache and gives logits
for the rows that sample or are scored. Knows no queue, no socket and no other request than those in the plan.
"""

from __future__ import annotations

import torch

from tokenmill.decide.batching.types import Chunk, StepPlan
from tokenmill.errors import ConfigError
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.engines.base import ExecutorFacts, StepFailed, StepResult
from tokenmill.serve.engines.torch.attention import PagedCache, flatten
from tokenmill.serve.engines.torch.checkpoint import DTYPES, Checkpoint, checkpoint_dtype
from tokenmill.serve.engines.torch.memory import CudaKvMemory
from tokenmill.serve.engines.torch.model import ModelShape, PagedModel, load_model
from tokenmill.serve.engines.torch.sampling import Sampler, score
from tokenmill.serve.engines.torch.settings import TorchSettings
from tokenmill.serve.engines.torch.sizing import size_cache
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.memory import HostKvMemory

_SCORED_ROWS = 256
"""Prompt rows scored at once: bounds the memory of their log probabilities."""


class TorchExecutor:
    """Implements ``Executor``."""

    memory: HostKvMemory | CudaKvMemory

    def __init__(self, settings: TorchSettings) -> None:
        self._settings = settings
        self._device = torch.device("cpu")
        self._model: PagedModel | None = None
        self._cache: PagedCache | None = None
        self._sampler = Sampler(0, [])

    def load(self) -> ExecutorFacts:
        """See ``Executor.load``."""
        settings = self._settings
        checkpoint = Checkpoint(settings.model)
        self._device = device = _device(settings.device)
        dtype_name = checkpoint_dtype(settings.dtype, checkpoint, device)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        with torch.inference_mode():
            self._model = model = load_model(checkpoint, DTYPES[dtype_name], device)
        shape = model.shape
        layout = KvLayout(
            planes=2 * shape.layers,
            block_tokens=settings.block_tokens,
            token_bytes=shape.kv_heads * shape.head_dim * DTYPES[dtype_name].itemsize,
            dtype=dtype_name,
        )
        blocks, max_model_len = size_cache(settings, layout, shape.max_positions, device)
        self._cache = self._allocate(layout, blocks, shape)
        self._sampler = Sampler(shape.vocab_size, checkpoint.eos_token_ids)
        return ExecutorFacts(
            model=settings.model.name,
            vocab_size=shape.vocab_size,
            max_model_len=max_model_len,
            kv_blocks=blocks,
            block_tokens=settings.block_tokens,
            eos_token_ids=checkpoint.eos_token_ids,
            fingerprint=checkpoint.fingerprint(dtype_name),
        )

    def admit(self, request_id: RequestId, sampling: Sampling, prompt_len: int) -> None:
        """See ``Executor.admit``. The prompt's length is read from the sequence when it is needed."""
        del prompt_len
        self._sampler.admit(request_id, sampling)

    def retire(self, request_id: RequestId) -> None:
        """See ``Executor.retire``."""
        self._sampler.retire(request_id)

    def execute(self, plan: StepPlan) -> StepResult:
        """See ``Executor.execute``. Raises StepFailed that names the requests whose logits are not finite."""
        if not plan.chunks:
            return StepResult([])
        assert self._model is not None
        assert self._cache is not None
        with torch.inference_mode():
            batch = flatten(plan, self._settings.block_tokens, self._device)
            sampling, scoring, rows = self._rows(plan)
            wanted = (
                None
                if rows == list(range(len(batch.ids)))
                else torch.tensor(rows, dtype=torch.int64, device=self._device)
            )
            logits = self._model.compute(batch, self._cache, wanted)
            # Scored first: sampling overwrites.
            scores = self._score(scoring, logits[len(sampling) :]) if scoring else {}
            sampled = self._sampler.sample(sampling, logits[: len(sampling)])
        return StepResult(sampled.tokens, sampled.logprobs, scores)

    def close(self) -> None:
        """See ``Executor.close``. Harmless when ``load`` failed or was not called."""
        self._model = None
        self._cache = None
        if hasattr(self, "memory"):
            self.memory.close()

    def _allocate(self, layout: KvLayout, blocks: int, shape: ModelShape) -> PagedCache:
        dtype = DTYPES[layout.dtype]
        if self._device.type == "cuda":
            self.memory = memory = CudaKvMemory(layout, blocks, dtype, self._device)
            return PagedCache(memory.storage, shape.kv_heads)
        host = HostKvMemory(layout, blocks)
        self.memory = host
        storage = torch.frombuffer(host.region, dtype=dtype)
        return PagedCache(
            storage.view(layout.planes, blocks, layout.block_tokens, shape.kv_heads * shape.head_dim),
            shape.kv_heads,
        )

    def _rows(self, plan: StepPlan) -> tuple[list[Chunk], list[tuple[Chunk, int]], list[int]]:
        """Return the chunks that sample, those whose prompt is scored with how many of their rows, and the
        rows of the step whose logits these need, in that order."""
        sampling: list[Chunk] = []
        scoring: list[tuple[Chunk, int]] = []
        rows: list[int] = []
        scored_rows: list[int] = []
        first = 0
        for chunk in plan.chunks:
            if chunk.samples:
                sampling.append(chunk)
                rows.append(first + chunk.length - 1)
            # A row's logits score the token after it; the last prompt token's are the first sample.
            scored = min(chunk.length, chunk.sequence.prompt_len - 1 - chunk.start)
            if chunk.sequence.request.score_prompt and scored > 0:
                scoring.append((chunk, scored))
                scored_rows += range(first, first + scored)
            first += chunk.length
        return sampling, scoring, rows + scored_rows

    def _score(
        self, scoring: list[tuple[Chunk, int]], logits: torch.Tensor
    ) -> dict[RequestId, tuple[int, list[TokenLogprobs]]]:
        result: dict[RequestId, tuple[int, list[TokenLogprobs]]] = {}
        row = 0
        for chunk, count in scoring:
            request_id = chunk.sequence.request.request_id
            alternatives = self._sampler.prompt_logprobs(request_id) or 0
            targets = list(chunk.sequence.tokens[chunk.start + 1 : chunk.start + 1 + count])
            if not bool(logits[row : row + count].amax(dim=-1).isfinite().all()):
                raise StepFailed(
                    f"the model gave logits that are not numbers for the prompt of {request_id}", [request_id]
                )
            scores: list[TokenLogprobs] = []
            for begin in range(0, count, _SCORED_ROWS):
                part = targets[begin : begin + _SCORED_ROWS]
                scores += score(
                    logits[row + begin : row + begin + len(part)], part, [alternatives] * len(part)
                )
            result[request_id] = (chunk.start + 1, scores)
            row += count
        return result


def _device(name: str) -> torch.device:
    """Resolve a device by name. Raises ConfigError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in {"cpu", "cuda"} and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise ConfigError(f"device: {name!r} is not one of auto, cpu, cuda, cuda:N", param="device")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name} is not there ({torch.cuda.device_count()} CUDA devices); use --device cpu",
            param="device",
        )
    return device
