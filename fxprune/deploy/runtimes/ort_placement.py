"""Where onnxruntime runs the nodes: what it recorded, what its profile says, and what has no business on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxprune.deploy.runtimes.base import KernelTime, PlacedNode, Placement

SHAPE_OPERATORS = frozenset(
    {
        "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul", "Range",
        "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""What shapes are computed with. onnxruntime puts such nodes on the CPU on purpose: sizes are needed there."""


def recorded_placement(raw: Any) -> Placement | None:
    """Return what the session recorded when it assigned its nodes; None where this version does not record."""
    if not hasattr(raw, "get_provider_graph_assignment_info"):
        return None
    try:
        parts = raw.get_provider_graph_assignment_info()
    except Exception:  # onnxruntime's own classes are private to it; a version may know the call but not the setting
        return None
    return Placement.of((part.ep_name, node.name, node.op_type) for part in parts for node in part.get_nodes())


def astray(placement: Placement, provider: str) -> list[PlacedNode]:
    """Return the nodes on a fallback provider that do more than compute shapes.

    An operator of :data:`SHAPE_OPERATORS` counts as computing shapes only where the graph has a Shape or Size to start
    from.
    """
    nodes = placement.nodes.get(provider, ())
    if not any(node.op in ("Shape", "Size") for node in nodes):
        return list(nodes)
    return [node for node in nodes if node.op not in SHAPE_OPERATORS]


def read_profile(path: Path) -> list[KernelTime]:
    """Return every execution of a node in onnxruntime's profile."""
    events = json.loads(path.read_text())
    return [
        KernelTime(
            event["name"].removesuffix("_kernel_time"),
            str(event["args"].get("op_name", "")),
            str(event["args"].get("provider", "")),
            float(event["dur"]),
        )
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
