"""Reading and writing profile files: JSON that a person can read.

Errors name the file, the field and the fix. It must not know how profiles are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from tokenmill.decide.perf.profile import Profile
from tokenmill.errors import ConfigError

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""A profile has some hundred measurements of 200 bytes; a larger file is some other file."""


def load_profile(path: Path) -> Profile:
    """Read a profile file. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"profile: {path} is larger than {MAX_FILE_BYTES} bytes: not a profile")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"profile: there is no file {path}; make one with: tokenmill profile --out {path}"
        ) from None
    except OSError as error:
        raise ConfigError(f"profile: {path} cannot be read: {error.strerror}") from None
    try:
        return msgspec.json.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"profile: {path} is not a profile of this version: {error}; make it anew with: tokenmill profile"
        ) from None


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile file, over one of that name. Raises ConfigError where that cannot be."""
    data = msgspec.json.format(msgspec.json.encode(profile), indent=1)
    try:
        path.write_bytes(data + b"\n")
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be written: {error.strerror}", param="out") from None
