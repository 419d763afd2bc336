"""A server that speaks SGLang's protocol without a model, written from SGLang 0.5.23's public source.

For tests of whatever talks to SGLang: it checks every field it gets, makes tokens that depend on all that it
was given, and misbehaves on demand. It runs in a test's event loop (``SglangDouble``) or as a process
(``python -m tokenmill.testing.sglang_double``, with ``sglang.launch_server``'s options).
"""

from tokenmill.testing.sglang_double.double import SglangDouble
from tokenmill.testing.sglang_double.settings import DoubleSettings, parse_arguments

__all__ = ["DoubleSettings", "SglangDouble", "parse_arguments"]
