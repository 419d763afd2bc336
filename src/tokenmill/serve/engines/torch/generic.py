"""Any other decoder: its ``transformers`` class, with our paged attention in place of its own.

The class computes everything but attention, which it asks for through transformers' attention interface. A
step goes through it as one row of tokens with explicit positions and no cache of its own. What the class asks
of attention (heads, windows, sinks) is seen by probing it with one token, so that no configuration has to be
understood here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.torch.attention import AttentionKind, PagedCache, StepBatch
from tokenmill.serve.engines.torch.checkpoint import Checkpoint
from tokenmill.serve.engines.torch.model import ModelShape

_NAME = "tokenmill_paged"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class _Attention(Protocol):
    """What takes an attention layer's tensors: [tokens, heads or kv_heads, head_dim] each."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor: ...


class _Step(NamedTuple):
    """One step's attention."""

    cache: PagedCache
    batch: StepBatch

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor:
        return self.cache.attend(layer, query, key, value, kind, self.batch)


class _Probe:
    """Sees what each layer asks for. For one token alone the value is the answer, whatever the query."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, int]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor:
        del kind
        if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
            raise ConfigError("attention with values of another size than keys is not supported")
        self.seen[layer] = (key.shape[1], key.shape[2])
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1).flatten(1)


def _paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    paged: _Attention | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query [1, heads, tokens, head_dim], key and value likewise."""
    layer = getattr(module, "layer_idx", None)
    if paged is None or attention_mask is not None or layer is None:
        raise ConfigError("the model's code does not pass on what paged attention needs")
    kind = AttentionKind(
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    rows = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    out = paged.attend(layer, rows[0], rows[1], rows[2], kind)
    return out.view(1, query.shape[2], query.shape[1], -1), None


def _no_mask(*_: object, **__: object) -> None:
    """Masks are the business of paged attention."""


class GenericModel:
    """Implements ``PagedModel``."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        AttentionInterface.register(_NAME, _paged_attention)
        AttentionMaskInterface.register(_NAME, _no_mask)
        with _config_errors(checkpoint), _quiet():
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
            text = config.get_text_config(decoder=True)
            _check(text)
            loader: Any = AutoModelForCausalLM
            model, info = loader.from_pretrained(
                checkpoint.folder,
                config=config,
                dtype=dtype,
                attn_implementation=_NAME,
                local_files_only=True,
                output_loading_info=True,
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ConfigError(
                f"{checkpoint.folder}: tensor {missing[0]} is missing; the checkpoint is incomplete"
            )
        self._model = model.to(device).eval()
        self._device = device
        with _config_errors(checkpoint):
            kv_heads, head_dim = self._probe(int(text.num_hidden_layers))
        self.shape = ModelShape(
            layers=int(text.num_hidden_layers),
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=int(text.vocab_size),
            max_positions=int(getattr(text, "max_position_embeddings", None) or 2048),
        )

    def compute(self, batch: StepBatch, cache: PagedCache, rows: torch.Tensor | None) -> torch.Tensor:
        """See ``PagedModel.compute``."""
        return self._forward(batch.ids, batch.positions, _Step(cache, batch), 0 if rows is None else rows)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, paged: _Attention, keep: torch.Tensor | int
    ) -> torch.Tensor:
        out = self._model(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=keep,
            paged=paged,
        )
        logits: torch.Tensor = out.logits[0].float()
        return logits

    def _probe(self, layers: int) -> tuple[int, int]:
        """Return kv_heads and head_dim, seen on one token. Raises ConfigError for layers without paging."""
        probe = _Probe()
        token = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._forward(token, token, probe, 0)
        if sorted(probe.seen) != list(range(layers)) or len(set(probe.seen.values())) != 1:
            raise ConfigError(
                f"only models with equal attention in each of the {layers} layers can be paged, "
                f"but these layers have it: {sorted(probe.seen)}"
            )
        return probe.seen[0]


def _check(config: Any) -> None:
    """Refuse what our attention would silently compute wrongly."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds <= _KNOWN_LAYERS:
        raise ConfigError(f"layers of type {', '.join(sorted(kinds - _KNOWN_LAYERS))} are not supported")
    for flag in ("is_encoder_decoder", "use_bidirectional_attention", "attention_chunk_size", "alibi"):
        if getattr(config, flag, None):
            raise ConfigError(f"{flag} is not supported")
    if not getattr(config, "is_causal", True):
        raise ConfigError("attention that is not causal is not supported")


@contextmanager
def _config_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what transformers says of a checkpoint it cannot load into one line."""
    name = checkpoint.architecture or checkpoint.config.get("model_type")
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.folder}: {name}: {error.message}", param="model") from error
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"{checkpoint.folder}: {name} cannot be loaded: {said[:300]}", param="model"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and hints off the worker's terminal while it loads."""
    logging: Any = transformers.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
