"""Which units the user keeps: those on the output side of parameters that match a pattern."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from fxprune.channels import Groups
from fxprune.errors import InputError
from fxprune.planning.cost_model import Bools

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parse_patterns(protect: str | Iterable[str]) -> tuple[str, ...]:
    """Return the patterns as a tuple; a single one may be given as a plain string.

    Raises:
        InputError: something in it is no string.
    """
    patterns = tuple(protect) if isinstance(protect, Iterable) and not isinstance(protect, str) else (protect,)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(
                f"protect takes glob patterns over parameter names, such as 'head.*', but got {pattern!r}."
            )
    return patterns


def protected(groups: Groups, patterns: tuple[str, ...]) -> Bools:
    """Return which classes are on the output dimension of a parameter whose name matches one of ``patterns``.

    Patterns match as in ``fnmatch``, case-sensitive. The output dimension is the first, but the second for transposed
    convolutions and embeddings.

    Raises:
        InputError: a pattern matches no parameter; the message lists names that come near.
    """
    chosen = np.zeros(len(groups.live), bool)
    module = groups.traced.module
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    first = {id(tensor): name for name, tensor in module.named_parameters()}
    labelled = set(groups.parameters)
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise InputError(_no_match(pattern, names))
        for name in matched:
            for dim in _output_dims(module, name):
                canonical = first[id(module.get_parameter(name))]
                labels = groups.axis(canonical, dim) if (canonical, dim) in labelled else None
                if labels is not None:
                    chosen[labels] = True
    return chosen


def _output_dims(module: nn.Module, name: str) -> tuple[int, ...]:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf != "weight":
        return (0,)
    if isinstance(owner, _TRANSPOSED):
        return (
            (1,) if owner.groups == 1 else (0, 1)
        )  # several groups: part of the output channel's number is the group, which the inputs hold
    return (1,) if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) else (0,)


def _no_match(pattern: str, names: list[str]) -> str:
    stem = pattern.strip("*?.")
    near = [name for name in names if stem and stem.lower() in name.lower()][:3]
    near = near or get_close_matches(stem, names, 3, 0.4) or names[:3]
    hint = f"; names that come near: {', '.join(near)}" if near else ""
    return (
        f"The protect pattern {pattern!r} matches no parameter of this model{hint}. "
        "Patterns are matched against whole names: use 'head.*', not 'head'."
    )
