"""The figures of the catalogue's GPUs, each with its source, by maker. Facts only; types stand in
``catalogue``.

Figures are those of data sheets: what a device never exceeds, not what a model reaches on it
(``decide.perf``). Prices are list prices on demand of one day, there so that plans can be compared at all;
a fleet file's go first.
"""

from __future__ import annotations

from typing import Final

from tokenmill.decide.fleet.catalogue import Catalogue
from tokenmill.decide.fleet.gpus.amd import AMD
from tokenmill.decide.fleet.gpus.blackwell import BLACKWELL
from tokenmill.decide.fleet.gpus.nvidia import AMPERE_AND_ADA, HOPPER

CATALOGUE: Final = Catalogue((*AMPERE_AND_ADA, *HOPPER, *BLACKWELL, *AMD))
"""All of them."""
