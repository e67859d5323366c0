"""fxprune: structured pruning and graph passes on ``torch.fx``, proved right by numbers on every run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Groups": "fxprune.channels",
    "LayerPlan": "fxprune.depth",
    "Pipeline": "fxprune.pipeline",
    "Plan": "fxprune.planning",
    "Traced": "fxprune.capture",
    "check_parity": "fxprune.deploy.parity",
    "count": "fxprune.planning",
    "cut": "fxprune.surgery",
    "export_onnx": "fxprune.deploy.onnx",
    "find_groups": "fxprune.channels",
    "find_layers": "fxprune.depth",
    "load": "fxprune.results",
    "make_layer_plan": "fxprune.depth",
    "make_plan": "fxprune.deploy.latency_budget",
    "measure_latency": "fxprune.deploy.latency",
    "trace": "fxprune.capture",
    "verify_cut": "fxprune.surgery",
}

if TYPE_CHECKING:
    from fxprune.capture import Traced, trace
    from fxprune.channels import Groups, find_groups
    from fxprune.deploy.latency import measure_latency
    from fxprune.deploy.latency_budget import make_plan
    from fxprune.deploy.onnx import export_onnx
    from fxprune.deploy.parity import check_parity
    from fxprune.depth import LayerPlan, find_layers, make_layer_plan
    from fxprune.pipeline import Pipeline
    from fxprune.planning import Plan, count
    from fxprune.results import load
    from fxprune.surgery import cut, verify_cut

__all__ = [
    "Groups",
    "LayerPlan",
    "Pipeline",
    "Plan",
    "Traced",
    "__version__",
    "check_parity",
    "count",
    "cut",
    "export_onnx",
    "find_groups",
    "find_layers",
    "load",
    "make_layer_plan",
    "make_plan",
    "measure_latency",
    "trace",
    "verify_cut",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that ``fxprune --help`` answers without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "passes":
        return importlib.import_module("fxprune.passes")
    raise AttributeError(f"module 'fxprune' has no attribute {name!r}")
