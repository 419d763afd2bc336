"""What so many connections ask where all requests are alike: texts of one length that nobody has seen.

Exists so that comparisons with such a load ask the same. It must not know who is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.real_vllm.load import Ask
from benchmarks.real_vllm.prompts import Writer


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Requests of ``connections`` connections."""

    connections: int
    prompt_tokens: int
    output_tokens: int

    def asks(self, writer: Writer, seed: str, requests: int) -> list[list[Ask]]:
        """``requests`` of each connection; the same seed gives the same texts."""
        return [
            [
                Ask(writer.text(self.prompt_tokens, f"{seed} {client} {index}"), self.output_tokens)
                for index in range(requests)
            ]
            for client in range(self.connections)
        ]
