"""Matrix products with weights laid out once for the CPU's matrix kernels.

oneDNN reads a weight in blocks; handing it a plain matrix makes it convert or fall back on each call, which
at small batches costs as much as the product. Where oneDNN cannot (other devices, no such build), this is
``torch.nn.functional.linear``.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, silu

_BATCH_HINT = 16
"""Rows that the layout is chosen for: a decode batch; also good for one row and for a prefill chunk."""

_TWIN_RATIO = 1.5
"""Outputs to inputs from which on a single float32 row is faster with the transposed weight."""


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether oneDNN multiplies this dtype here with native instructions."""
    if device.type != "cpu" or not torch._C._has_mkldnn:  # noqa: SLF001 - the public question is untyped
        return False
    operators = torch.ops.mkldnn
    if not (hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")):
        return False
    if dtype is torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no public name for it
    return dtype is torch.float32


class Dense:
    """y = x W^T + b for x of [rows, in]. Takes W, [out, in]; keeps only its packed form if ``pack``.

    ``twin``: keep a transposed copy as well where one row alone is faster with it, which is so for float32
    and many more outputs than inputs.
    """

    __slots__ = ("_bias", "_packed", "_pointwise", "_twin", "_weight")

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, pack: bool, twin: bool = False
    ) -> None:
        outputs, inputs = weight.shape
        self._packed = pack
        self._bias = bias
        self._weight = weight
        self._twin: torch.Tensor | None = None
        if twin and weight.dtype is torch.float32 and outputs >= _TWIN_RATIO * inputs:
            self._twin = weight.t().contiguous()
        if pack:
            operators = torch.ops.mkldnn
            self._weight = operators._reorder_linear_weight(weight, _BATCH_HINT)  # noqa: SLF001
            self._pointwise = operators._linear_pointwise  # noqa: SLF001

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, out]."""
        if self._packed and not self._single(x):
            out: torch.Tensor = self._pointwise.default(x, self._weight, self._bias, "none", [], "")
            return out
        return self._plain(x)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """Return the SiLU of y, [rows, out]."""
        if self._packed and not self._single(x):
            out: torch.Tensor = self._pointwise.default(x, self._weight, self._bias, "swish", [], "")
            return out
        return silu(self._plain(x), inplace=True)

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return y + other, [rows, out]."""
        if self._packed and not self._single(x):
            out: torch.Tensor = self._pointwise.binary(x, other, self._weight, self._bias, "add")
            return out
        return self._plain(x).add_(other)

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return y * other, [rows, out]."""
        if self._packed and not self._single(x):
            out: torch.Tensor = self._pointwise.binary(x, other, self._weight, self._bias, "mul")
            return out
        return self._plain(x).mul_(other)

    def _single(self, x: torch.Tensor) -> bool:
        return self._twin is not None and len(x) == 1

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        if self._twin is None:
            return linear(x, self._weight, self._bias)
        product = torch.mm(x, self._twin)
        return product if self._bias is None else product.add_(self._bias)
