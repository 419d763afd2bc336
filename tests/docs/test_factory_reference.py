from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_types_say() -> None:
    script = ROOT / "scripts" / "write_factory_reference.py"
    spec = importlib.util.spec_from_file_location("write_factory_reference", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "factory-file.md").read_text()
    assert written == module.reference(), "run scripts/write_factory_reference.py"
