"""Tiny networks, one for each construct that breaks a structured pruner, with what must be true of their channels.

``NETWORKS[name]`` is ``(factory, args, expectation, kwargs)``. Channel counts differ wherever a mix-up of two
dimensions would otherwise go unseen, and are equal to spatial sizes in a few networks on purpose, because matching
dimensions by size is a classical way to be silently wrong.

One file for each family of constructs. Importing the package registers them all.
"""

from __future__ import annotations

from tests.networks import (  # noqa: F401 - what they register
    attention,
    chains,
    convolutions,
    ends,
    gates,
    inplace,
    moves,
    norms,
    pooling,
    products,
    recurrent,
    reductions,
    reshapes,
    sharing,
    splits,
    unknown,
    weights,
)
from tests.networks.registry import (
    IMAGE,
    NETWORKS,
    TOKENS,
    WORDS,
    Expectation,
    Inputs,
    Network,
    Removal,
    build,
    captured,
    network,
    normal,
    produced,
    zeroed,
)

__all__ = [
    "IMAGE",
    "NETWORKS",
    "TOKENS",
    "WORDS",
    "Expectation",
    "Inputs",
    "Network",
    "Removal",
    "build",
    "captured",
    "network",
    "normal",
    "produced",
    "zeroed",
]
