"""Writes ``docs/factory-file.md`` from the factory file's types, so that the two cannot drift.

    python scripts/write_factory_reference.py

A test compares the file with what this would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenmill.spec.schema import factory_schema

TARGET = Path(__file__).parent.parent / "docs" / "factory-file.md"
SECTIONS = (
    "Factory",
    "Metadata",
    "Model",
    "Slo",
    "Frontend",
    "Router",
    "Admission",
    "Stage",
    "Parallel",
    "Price",
    "Planner",
    "Log",
)
HEAD = """# The factory file

A factory is declared in one YAML file (JSON works too). `tokenmill up FILE` runs it on this machine,
`tokenmill doctor FILE` checks it against the machine, and `tokenmill schema` prints its JSON schema for
editors. An unknown or misspelt key is an error that names the line and the nearest key. Top-level keys that
begin with `x-` are yours.

```yaml
apiVersion: tokenmill/v1
kind: Factory
metadata: {name: demo}
model: {name: my-model, path: ./checkpoints/my-model}
frontend: {port: 8000}
stages:
  - {name: prefill, role: prefill, replicas: 1, cpus: [0]}
  - {name: decode, role: decode, replicas: 1, cpus: [1]}
```

This page is written by `scripts/write_factory_reference.py`.
"""


def reference() -> str:
    """Return the page."""
    definitions: dict[str, Any] = factory_schema()["$defs"]
    parts = [HEAD]
    for section in SECTIONS:
        definition = definitions[section]
        parts.append(f"\n## {section}\n\n{_one_line(definition.get('description', ''))}\n")
        parts.append("| field | default | meaning |\n| --- | --- | --- |")
        required = set(definition.get("required", ()))
        for name, field in definition["properties"].items():
            default = "required" if name in required else _default(field)
            meaning = _one_line(field["description"]).replace("|", "/")
            parts.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(parts) + "\n"


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if value in ("", None, [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    TARGET.write_text(reference())
    print(f"written to {TARGET}")
