"""Which convolutions and linear layers of a graph a pass is asked to look at: glob patterns over their paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import fx

from fxprune.errors import InputError
from fxprune.graph_tools import module_of
from fxprune.linear.layers import FUNCTIONAL, LAYERS, TRANSPOSED


def is_candidate(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a convolution or linear layer in whatever form."""
    if node.op == "call_module":
        return isinstance(module_of(module, node), (*LAYERS, *TRANSPOSED))
    return node.op == "call_function" and node.target in FUNCTIONAL


def patterns_of(name: str, option: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of an option, of which one may be given as text; ``name`` is that of the pass.

    Raises:
        InputError: One is no text.
    """
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"{name}: {option} takes glob patterns of layers' paths, and got {pattern!r}")
    return patterns


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns matches the whole path."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def check_patterns(name: str, options: Mapping[str, Iterable[str]], paths: Sequence[str]) -> None:
    """Refuse patterns that match nothing: most likely they are misspelt.

    Args:
        name: Name of the pass.
        options: Option -> its patterns.
        paths: Paths of all layers that they may match.

    Raises:
        InputError: A pattern other than ``*`` matches none of them.
    """
    for option, patterns in options.items():
        for pattern in patterns:
            if pattern != "*" and not any(fnmatchcase(path, pattern) for path in paths):
                raise InputError(
                    f"{name}: the pattern {pattern!r} of {option} matches no convolution or linear layer of "
                    f"this model, whose layers are {', '.join(paths[:5]) or 'none'}{'...' * (len(paths) > 5)}. "
                    "Patterns are matched against whole paths: use 'head.*' for what is inside of head"
                )
