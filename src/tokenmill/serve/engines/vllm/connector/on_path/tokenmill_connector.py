"""What vLLM finds by ``kv_connector_module_path: tokenmill_connector``, with this folder alone on its path.

Exists so that nothing else of our environment gets into vLLM's: the package is found from here, not through
the path, and needs no more than msgspec, which vLLM has. So it is always the launching worker's version.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "tokenmill" not in sys.modules:
    _package = Path(__file__).resolve().parents[5]
    _spec = importlib.util.spec_from_file_location(
        "tokenmill", _package / "__init__.py", submodule_search_locations=[str(_package)]
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["tokenmill"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["tokenmill"])

from tokenmill.serve.engines.vllm.connector.shell import TokenmillConnector

__all__ = ["TokenmillConnector"]
