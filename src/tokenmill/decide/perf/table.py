"""Step times from tables: what database, roofline and measured profiles all become.

Exists so that a call costs about a microsecond wherever the numbers are from: a table holds a few hundred
numbers, and a step is three lookups in it. It must not know where they are from.

A step's time is ``dense + prefill attention + decode attention``. Dense work goes by tokens of both kinds
together, as matrix products do, and has a table of its own for steps of decodes alone, which engines run in
other ways (captured graphs). Attention goes by tokens and by the mean context of one of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from tokenmill.decide.fleet.links import DEFAULT_LINK, Link
from tokenmill.protocol.step_table import StepTable

__all__ = ["Line", "StepTable", "TableStepTime"]


class Line:
    """Straight between knots and on beyond them, never below the value at the first."""

    __slots__ = ("_cells", "_inner", "_least")

    def __init__(self, knots: Sequence[float], values: Sequence[float]) -> None:
        self._inner = list(knots[1:-1])
        self._least = values[0]
        self._cells = []
        for i in range(len(knots) - 1):
            slope = (values[i + 1] - values[i]) / (knots[i + 1] - knots[i])
            self._cells.append((values[i] - slope * knots[i], slope))

    def __call__(self, x: float) -> float:
        """Return the value at ``x``."""
        start, slope = self._cells[bisect_right(self._inner, x)]
        return max(self._least, start + slope * x)


class _Plane:
    """Bilinear between knots and on beyond them, never negative: exact where time is a product of both, as
    that of attention is for large steps."""

    __slots__ = ("_cells", "_columns", "_rows")

    def __init__(
        self, rows: Sequence[float], columns: Sequence[float], values: Sequence[Sequence[float]]
    ) -> None:
        self._rows, self._columns = list(rows[1:-1]), list(columns[1:-1])
        self._cells = [
            [_cell(rows, columns, values, i, j) for j in range(len(columns) - 1)]
            for i in range(len(rows) - 1)
        ]

    def __call__(self, x: float, total: float) -> float:
        """Return the value at row ``x`` and column ``total / x``."""
        y = total / x
        cell = self._cells[bisect_right(self._rows, x)][bisect_right(self._columns, y)]
        return max(0.0, cell[0] + cell[1] * x + cell[2] * y + cell[3] * total)


def _cell(
    rows: Sequence[float], columns: Sequence[float], values: Sequence[Sequence[float]], i: int, j: int
) -> tuple[float, float, float, float]:
    """The four coefficients of ``a + b x + c y + d x y`` through a cell's corners."""
    x0, x1, y0, y1 = rows[i], rows[i + 1], columns[j], columns[j + 1]
    v00, v01, v10, v11 = values[i][j], values[i][j + 1], values[i + 1][j], values[i + 1][j + 1]
    area = (x1 - x0) * (y1 - y0)
    both = (v11 - v10 - v01 + v00) / area
    along_x = ((v10 - v00) * y1 - (v11 - v01) * y0) / area
    along_y = ((v01 - v00) * x1 - (v11 - v10) * x0) / area
    return v00 - along_x * x0 - along_y * y0 - both * x0 * y0, along_x, along_y, both


class TableStepTime:
    """A ``StepTimeModel`` over a table. Immutable; some hundred numbers."""

    __slots__ = ("_decode_attention", "_decode_dense", "_dense", "_link", "_prefill_attention", "table")

    def __init__(self, table: StepTable, link: Link = DEFAULT_LINK) -> None:
        self.table = table
        self._link = link
        self._dense = Line(table.tokens, table.dense_ms)
        self._decode_dense = Line(table.sequences, table.decode_dense_ms)
        self._prefill_attention = _Plane(table.tokens, table.contexts, table.prefill_attention_ms)
        self._decode_attention = _Plane(table.sequences, table.contexts, table.decode_attention_ms)

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        if new_tokens <= 0:
            return 0.0
        return self._dense(new_tokens) + self._prefill_attention(new_tokens, context_tokens)

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        if sequences <= 0:
            return 0.0
        return self._decode_dense(sequences) + self._decode_attention(sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """See ``StepTimeModel``."""
        if new_tokens <= 0:
            return self.decode_ms(sequences, decode_context)
        if sequences <= 0:
            return self.prefill_ms(new_tokens, prefill_context)
        return (
            self._dense(new_tokens + sequences)
            + self._prefill_attention(new_tokens, prefill_context)
            + self._decode_attention(sequences, decode_context)
        )

    @property
    def kv_bytes_per_token(self) -> float:
        """See ``StepTimeModel``."""
        return self.table.kv_bytes_per_token

    @property
    def kv_capacity_tokens(self) -> int:
        """See ``StepTimeModel``."""
        return self.table.kv_capacity_tokens

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """See ``StepTimeModel``."""
        return (link or self._link).transfer_ms(tokens * self.table.kv_bytes_per_token)
