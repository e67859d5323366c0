"""Depth: which layers of a graph can go, how much each matters, and which go for a budget."""

from fxprune.depth.find import find_layers
from fxprune.depth.layers import Layer, Layers
from fxprune.depth.make import make_layer_plan
from fxprune.depth.plan import LayerPlan
from fxprune.depth.reference import verify_removal
from fxprune.depth.scores import score_layers

__all__ = ["Layer", "LayerPlan", "Layers", "find_layers", "make_layer_plan", "score_layers", "verify_removal"]
