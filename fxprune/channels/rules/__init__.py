"""How labels flow through each operation: one table, filled by the modules of this package."""

from fxprune.channels.rules import layers, move, same, statistics
from fxprune.channels.rules.table import RULES, Flow, rule

__all__ = ["RULES", "Flow", "layers", "move", "rule", "same", "statistics"]
