"""Reading and writing files of step times: a step table as JSON, as ``tokenmill plan --write`` leaves them.

Errors name the file and the fix. It must not know where the times are from.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.profiles.profile_file import MAX_FILE_BYTES
from tokenmill.protocol.step_table import StepTable


def load_step_table(path: Path) -> StepTable:
    """Read a file of step times. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"step_times: {path} is larger than {MAX_FILE_BYTES} bytes: not step times")
        return msgspec.json.decode(path.read_bytes(), type=StepTable)
    except FileNotFoundError:
        raise ConfigError(
            f"step_times: there is no file {path}; make one with: tokenmill plan --write"
        ) from None
    except OSError as error:
        raise ConfigError(f"step_times: {path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"step_times: {path} is no step table: {error}; make it anew with: tokenmill plan --write"
        ) from None


def save_step_table(table: StepTable, path: Path) -> None:
    """Write a file of step times, over one of that name. Raises ConfigError where that cannot be."""
    try:
        path.write_bytes(msgspec.json.encode(table) + b"\n")
    except OSError as error:
        raise ConfigError(f"write: {path} cannot be written: {error.strerror}", param="write") from None
