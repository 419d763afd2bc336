"""What all sections of the factory file share: their base and kinds of values. Knows nothing of YAML."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
"""What Kubernetes takes as a name, because the same file runs there; it is a folder's name here."""

AtLeast0 = Annotated[int, Meta(ge=0)]
AtLeast1 = Annotated[int, Meta(ge=1)]
AtLeast0Float = Annotated[float, Meta(ge=0)]
Above0 = Annotated[float, Meta(gt=0)]
Seconds = Above0
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What all parts of the file share: immutable, written without what is at its default."""
