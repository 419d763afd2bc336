"""The key that a server asks for: where it is kept, so that it stands in no file, log or list of processes.

It must not know what the key opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tokenmill.errors import ConfigError

_ENV: Final = "env:"
_FILE: Final = "file:"
_MAX_BYTES: Final = 64 * 1024


def read_key(kept: str, environment: Mapping[str, str]) -> str:
    """Return the key that is kept at ``env:NAME`` or ``file:PATH``, or is given itself. Raises ConfigError,
    which never shows a key."""
    if kept.startswith(_ENV):
        name = kept.removeprefix(_ENV)
        key = environment.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"attach_key: the variable {name} is not set; export it first", param="attach_key"
            )
    elif kept.startswith(_FILE):
        key = _from_file(Path(kept.removeprefix(_FILE)).expanduser())
    else:
        key = kept
    if not key.isascii() or not key.isprintable():
        raise ConfigError("attach_key: a key has printable ASCII characters only", param="attach_key")
    return key


def stands_for_itself(kept: str) -> bool:
    """Whether what is written is the key, and not where it is kept."""
    return bool(kept) and not kept.startswith((_ENV, _FILE))


def grounded_key(kept: str, folder: Path) -> str:
    """Return where a key is kept, a relative path seen from ``folder``."""
    if not kept.startswith(_FILE):
        return kept
    return _FILE + str(folder / Path(kept.removeprefix(_FILE)).expanduser())


def hidden(text: str, key: str) -> str:
    """Return a text without the key, which a server may have repeated in its complaint."""
    return text.replace(key, "***") if key else text


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_BYTES).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"attach_key: {path}: {error.strerror}", param="attach_key") from None
    except UnicodeDecodeError:
        raise ConfigError(f"attach_key: {path} holds no key: it is no text", param="attach_key") from None
    if not key:
        raise ConfigError(f"attach_key: {path} is empty", param="attach_key")
    return key
