"""How labels flow through each operation: one table, filled by the modules of this package."""

from fxprune.channels.rules import (
    convolutions,
    layers,
    move,
    positions,
    products,
    recurrent,
    same,
    spectrum,
    statistics,
)
from fxprune.channels.rules.table import RULES, Entry, Flow, Held, key_of, rule

__all__ = [
    "RULES",
    "Entry",
    "Flow",
    "Held",
    "convolutions",
    "key_of",
    "layers",
    "move",
    "positions",
    "products",
    "recurrent",
    "rule",
    "same",
    "spectrum",
    "statistics",
]
