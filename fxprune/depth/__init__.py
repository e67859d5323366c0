"""Depth: which layers of a graph can go, how much each matters, and which go for a budget."""

from fxprune.depth.find import find_layers
from fxprune.depth.layers import Layer, Layers

__all__ = ["Layer", "Layers", "find_layers"]
