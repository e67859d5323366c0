"""One random network, pruned in random ways and held to three references.

The masked reference is the library's own. The others share nothing with it and know of no labels:

- *zeros*: a copy of the network in which every slice that the removal lists is zero, wherever it is listed, run by
  plain Python. What is removed is then neither made nor read by anything with weights. It says the same where no
  operation takes statistics over channels, or multiplies them with each other.
- *code*: the network's own Python on the cut weights: what somebody would have written with fewer channels. It says the
  same where the code names no widths.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced, trace
from fxprune.channels import Groups, find_groups
from fxprune.errors import FxPruneError, VerifyError
from fxprune.surgery import cut, verify_cut
from tools._fuzz_program import Program

TOLERANCE = 1e-9
REMOVALS = 2
BATCH, SEED = 3, 5


class WrongNumber(Exception):
    """A cut network that computes something else than a reference, or has other shapes."""


@dataclass
class Checked:
    """What became of one network.

    Attributes:
        units: Removable units that it has.
        cuts: Removals that were carried out and found right.
        zeros: Of these, how many were also held to zeros.
        code: And how many to the code.
        refusals: What was refused, and why.
    """

    units: int = 0
    cuts: int = 0
    zeros: int = 0
    code: int = 0
    refusals: list[str] = field(default_factory=list)


def check_program(program: Program, seed: int = 0) -> Checked:
    """Capture, cut in random ways, compare.

    Raises:
        WrongNumber: A reference differs.
        Exception: Anything else that is no refusal in the library's own words is a crash.
    """
    model, found = program.build(seed), Checked()
    try:
        traced = trace(model, program.example())
    except FxPruneError as error:
        found.refusals.append(f"capture: {error}")
        return found
    groups = find_groups(traced)
    found.units = sum(len(family) for family in groups.families)
    rng = random.Random(seed)
    for _ in range(REMOVALS if found.units else 0):
        removed = random_removal(groups, rng)
        if not removed:
            continue
        try:
            small = cut(traced, removed, groups)
        except FxPruneError as error:
            found.refusals.append(f"cut: {error}")
            continue
        _compare(program, model, traced, small, removed, groups, found)
    return found


def random_removal(groups: Groups, rng: random.Random) -> dict[str, dict[int, list[int]]]:
    """Return a random removal that leaves a unit of each family and what operations need to have."""
    chosen: set[int] = set()
    for family in groups.families:
        chosen |= {int(unit) for unit in rng.sample([int(unit) for unit in family], rng.randint(0, len(family) - 1))}
    stays = np.ones(len(groups.live), dtype=bool)
    stays[list(chosen)] = False
    for minimum in groups.minimums:
        if minimum.left(stays) < minimum.least:
            needed = np.unique(np.concatenate(minimum.axes))
            chosen -= set(needed.tolist())
            stays[needed] = True
    removal: dict[str, dict[int, list[int]]] = groups.removal(sorted(chosen))
    return removal


def _compare(
    program: Program, model: nn.Module, traced: Traced, small: Traced, removed: Any, groups: Groups, found: Checked
) -> None:
    try:
        verify_cut(traced, small, removed, groups)
    except VerifyError as error:
        if "proves nothing" in str(error):  # a constant, as where an activation is saturated everywhere
            found.refusals.append(f"verify: {error}")
            return
        raise WrongNumber(f"masked reference: {error}") from error
    args = program.example(BATCH, SEED)
    outputs = _flat(small.run(args))
    if not program.reads:
        _same("zeros", outputs, _run(zeroed(model, removed), args))
        found.zeros += 1
    if not program.bakes:
        _same("code", outputs, _run(grafted(model, small.module), args))
        found.code += 1
    found.cuts += 1


def _run(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return _flat(model(*copy.deepcopy(args)))


def _flat(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _same(reference: str, outputs: list[Tensor], expected: list[Tensor]) -> None:
    if len(outputs) != len(expected):
        raise WrongNumber(f"{reference}: {len(outputs)} outputs, expected {len(expected)}")
    for index, (mine, theirs) in enumerate(zip(outputs, expected, strict=True)):
        if mine.shape != theirs.shape:
            raise WrongNumber(f"{reference}: output {index} is {tuple(mine.shape)}, expected {tuple(theirs.shape)}")
        error = float((mine - theirs).abs().max())
        scale = max(float(theirs.abs().max()), 1e-300)
        if not error <= TOLERANCE * scale:
            raise WrongNumber(f"{reference}: output {index} differs by {error / scale:.1e} of the largest entry")


def zeroed(model: nn.Module, removed: dict[str, dict[int, list[int]]]) -> nn.Module:
    """Return a copy in which all slices that are removed are zero, in what makes a channel and in what reads it."""
    model = copy.deepcopy(model)
    state = model.state_dict()
    with torch.no_grad():
        for name, dims in removed.items():
            for dim, indices in dims.items():
                if state[name].is_floating_point():
                    state[name].index_fill_(dim, torch.tensor(indices), 0.0)
    return model


def grafted(model: nn.Module, small: nn.Module) -> nn.Module:
    """Return a copy that holds the cut tensors, and the sizes that layers state."""
    model = copy.deepcopy(model)
    for path, module in model.named_modules():
        try:
            source = small.get_submodule(path)
        except AttributeError:  # a dropout: nothing of it is in the graph
            continue
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                setattr(module, name, getattr(source, name))
        for name, value in vars(source).items():
            if isinstance(value, int | tuple) and not name.startswith("_") and name in vars(module):
                setattr(module, name, value)
    return model
