"""``tokenmill import``: reads another system's file, writes a factory file, and tells what was lost."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenmill.errors import ConfigError
from tokenmill.spec.documents import read_text
from tokenmill.spec.imports.importing import Imported, import_factory
from tokenmill.spec.load import dump_factory, parse_factory


def import_file(path: Path, *, output: Path | None = None, name: str = "") -> int:
    """Import a file; ``output``: where to, else standard output. Returns 1 if the factory that came out would
    be refused as it is. Raises ConfigError for a file that cannot be imported.
    """
    imported = import_factory(read_text(path, "deployment file"), str(path), name)
    text = f"# Imported from {path.name} ({imported.kind}).\n{dump_factory(imported.factory)}"
    _write(text, output)
    sys.stderr.write(losses(imported, str(path)))
    try:
        parse_factory(text, str(output or "the factory file"))
    except ConfigError as error:
        sys.stderr.write(f"It does not load as it is:\n{error.message}\n")
        return 1
    return 0


def losses(imported: Imported, source: str) -> str:
    """Write what was not carried over, a line each: file:line: path: why."""
    if not imported.losses:
        return "All of it was carried over.\n"
    number = len(imported.losses)
    lines = [f"Not carried over, or not for certain ({number}):"]
    lines += [f"{source}:{loss.place.line}: {loss.path}: {loss.why}" for loss in imported.losses]
    return "\n".join(lines) + "\n"


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from None
