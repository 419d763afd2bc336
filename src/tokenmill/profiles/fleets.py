"""From a fleet file to an inventory of the catalogue's GPUs."""

from __future__ import annotations

from pathlib import Path

from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.stock import inventory_of
from tokenmill.spec.load_fleet import load_fleet


def load_inventory(path: Path) -> Inventory:
    """Read a fleet file. Raises ConfigError with all that is wrong in it."""
    fleet = load_fleet(path, is_known=lambda name: CATALOGUE.find(name) is not None, known=CATALOGUE.names)
    return inventory_of(fleet, CATALOGUE)
