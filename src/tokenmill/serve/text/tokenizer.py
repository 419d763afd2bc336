"""Text to token ids and back, for one checkpoint.

Wraps the ``tokenizers`` library: reads the files that say which tokens are special. How a text is encoded
quickly is ``encoder``'s business. Must not know about HTTP, requests or engines.

Special tokens that a user types ("<|im_end|>") are parsed as special tokens, as Hugging Face's
``apply_chat_template`` does by default: the chat template's output is one text, and who wrote which
part of it is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import tokenizers

from tokenmill.errors import BadRequest, ConfigError
from tokenmill.serve.text.encoder import Encoded, Encoder
from tokenmill.serve.text.files import CheckpointFiles
from tokenmill.serve.text.pieces import Machine, Pieces

CACHE_BYTES = 8 * 2**20
"""Memory for segments already encoded: eighty chats of 10,000 tokens."""

_NO_LIMIT = 10**12
"""Checkpoints without a ``model_max_length`` of their own carry a huge number there."""


class Tokenizer:
    """The tokenizer of one checkpoint. Safe to share between all requests of a process.

    ``vocab_size``: how many ids the tokenizer knows, added tokens included (a model's embedding may be
    larger). ``special_ids``: left out by ``decode`` unless asked for. ``eos_token_ids``: every id that
    generation_config.json, config.json or tokenizer_config.json names as an end, without repeats.
    ``max_length``: tokens, from tokenizer_config.json, None if it sets no limit. ``streams_text``:
    False if text can only be had at the end of a stream (see ``Detokenizer``).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        files: CheckpointFiles,
        *,
        encode_threads: int = 2,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        named = files.special_tokens()
        _settle(backend, files, named)
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.special_ids: frozenset[int] = frozenset(token for token, entry in added.items() if entry.special)
        self.bos_token_id = self._single(files, named, "bos_token")
        self.pad_token_id = self._single(files, named, "pad_token")
        self.eos_token_ids = tuple(
            dict.fromkeys([*files.token_ids("eos_token_id"), *self._named(named, "eos_token")])
        )
        limit = files.tokenizer_config.get("model_max_length")
        self.max_length = int(limit) if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT else None
        self.pieces = Pieces(backend, self.special_ids)
        self.streams_text = self.pieces.machine is not Machine.WHOLE
        self._encoder = Encoder(backend, threads=encode_threads, cache_bytes=cache_bytes)

    @classmethod
    def load(cls, folder: Path, *, encode_threads: int = 2, cache_bytes: int = CACHE_BYTES) -> Self:
        """Load ``tokenizer.json`` and its companions from a checkpoint folder. ``cache_bytes``: memory for
        what was encoded before; 0 keeps nothing.

        Raises:
            ConfigError: no usable tokenizer.json; the message names the file and the fix.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(_missing(path))
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
            raise ConfigError(f"{path}: not a usable tokenizer ({error}); fetch the file again") from error
        files = CheckpointFiles.read(Path(folder))
        return cls(backend, files, encode_threads=encode_threads, cache_bytes=cache_bytes)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of ``text``. Blocks the caller: for short texts, else ``encode_async``.

        ``add_special_tokens``: put in what the tokenizer adds by itself (BOS). False for a rendered chat
        template, which has written its own.

        Raises:
            BadRequest: ``text`` holds half a surrogate pair and so is no text.
        """
        return self._encoder.encode(text, add_special_tokens=add_special_tokens).ids

    async def encode_async(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Return the ids of ``text`` in both forms; what is long and new is encoded in a thread while the
        loop goes on, at about 0.2 s a megabyte. The caller sets the deadline. Cancelled: the thread's
        result is dropped.

        Raises:
            BadRequest: as ``encode``.
        """
        return await self._encoder.encode_async(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``; ids that name no token are left out.

        Raises:
            BadRequest: an id is negative or above 2**32 - 1.
        """
        try:
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise BadRequest("token ids must be from 0 to 2**32 - 1", param="tokens") from error
        return text

    def special_named(self, contents: Iterable[str]) -> frozenset[int]:
        """Return the special tokens among those that the vocabulary writes as ``contents``."""
        named = (self._backend.token_to_id(content) for content in contents)
        return frozenset(token for token in named if token in self.special_ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token adds to a text when it is not the first: for byte-level and byte-fallback
        tokens the true ones, also of a part of a character. Empty for an id that names no token."""
        return self.pieces.token_bytes(token) or b""

    def token_text(self, token: int) -> str:
        """Return ``token_bytes`` as text, with replacement characters for what is no whole character."""
        return self.token_bytes(token).decode(errors="replace")

    def close(self) -> None:
        """End the threads. Encodes that have not begun are cancelled; one under way is waited for."""
        self._encoder.close()

    def _named(self, named: dict[str, str], name: str) -> list[int]:
        token = self._backend.token_to_id(named[name]) if name in named else None
        return [] if token is None else [token]

    def _single(self, files: CheckpointFiles, named: dict[str, str], name: str) -> int | None:
        return next(iter([*self._named(named, name), *files.token_ids(f"{name}_id")]), None)


def _settle(backend: tokenizers.Tokenizer, files: CheckpointFiles, named: dict[str, str]) -> None:
    """Bring a loaded tokenizer.json to what the other files say, as Hugging Face's loader does. Like there,
    ``add_bos_token`` is not looked at: what tokenizer.json's post-processor adds is what counts."""
    # Left over from training in some checkpoints; they would cut or lengthen prompts silently.
    backend.no_truncation()
    backend.no_padding()
    _add_tokens(backend, files)
    known = {entry.content: entry for entry in backend.get_added_tokens_decoder().values()}
    for content in named.values():
        if backend.token_to_id(content) is None or (content in known and known[content].special):
            continue
        entry = known.get(content, tokenizers.AddedToken(content, normalized=False))
        entry.special = True
        backend.add_special_tokens([entry])
    if files.tokenizer_config.get("split_special_tokens") is True:
        backend.encode_special_tokens = True


def _add_tokens(backend: tokenizers.Tokenizer, files: CheckpointFiles) -> None:
    """Add the tokens that tokenizer_config.json lists and tokenizer.json lacks, in the order of their ids."""
    listed = files.tokenizer_config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if not isinstance(entry, dict) or backend.token_to_id(entry["content"]) is not None:
            continue
        chosen = {flag: bool(entry[flag]) for flag in flags if flag in entry}
        backend.add_tokens([tokenizers.AddedToken(entry["content"], **chosen)])
        if backend.token_to_id(entry["content"]) != int(token):
            raise ConfigError(
                f"tokenizer_config.json: added_tokens_decoder.{token}: tokenizer.json has no room for "
                f"{entry['content']!r} at this id; the two files are not of one checkpoint: fetch both again"
            )


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{folder}: no such folder; give the folder of a checkpoint in Hugging Face format"
    for old in ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model"):
        if (folder / old).is_file():
            return (
                f"{path}: not found, only {old}; convert it once with transformers: "
                f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            )
    return f"{path}: not found; copy the checkpoint's tokenizer.json there"
