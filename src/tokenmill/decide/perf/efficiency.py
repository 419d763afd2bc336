"""What share of its data sheet's rates a GPU reaches in each kind of work of an inference step.

Exists so that rooflines are honest: the peak is never reached. It must not know where the shares are from:
they are fitted by ``scripts/fit_efficiencies.py``, which writes ``efficiencies``.
"""

from __future__ import annotations

import msgspec


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of peak rates, from 0 to about 1, and times that no rate explains.

    ``products``: matrix products in bf16; ``narrow_products``: in fp8, int8 and fp4. ``weights``: memory
    bandwidth while reading weights. ``experts``: what mixtures of experts reach of the products' share;
    ``expert_weights``: their memory bandwidth. ``routing``: as how many tokens that choose evenly a token
    counts, when it comes to how many experts are read, since some are chosen more often.
    ``prefill_attention``: of the bf16 rate. ``decode_attention``: of memory bandwidth. ``passes``: how often
    a token's hidden state goes through memory in a layer, between the products. ``layer_us``: starting a
    layer's kernels. ``sends``: of the bandwidth between two GPUs; ``crowding``: it falls with the number of
    ranks to this power, where they share a way; ``send_us``: before an all-reduce moves.
    ``fit_error``: the mean share by which times are off for models that were left out of the fit.
    """

    products: float = 0.7
    narrow_products: float = 0.55
    weights: float = 0.75
    experts: float = 0.7
    expert_weights: float = 0.6
    routing: float = 0.6
    prefill_attention: float = 0.5
    decode_attention: float = 0.65
    passes: float = 20.0
    layer_us: float = 15.0
    sends: float = 0.5
    crowding: float = 0.1
    send_us: float = 8.0
    fit_error: float = 0.3

    def products_of(self, dtype: str) -> float:
        """Return the share for matrix products in a number format that the device has units for."""
        return self.products if dtype in {"bf16", "fp16", "fp32", "tf32"} else self.narrow_products
