"""Random passes with random options, drawn for the graph that they are to run on.

A drawn step knows how it is written as code; ``traced`` in that code is what the step before it gave.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune.capture import Traced
from fxprune.channels import find_groups
from fxprune.depth import find_layers
from fxprune.depth.slopes import Place, places_of
from fxprune.linear.basis import basis_paths, whole_blocks, with_vectors_dropped
from fxprune.linear.blocks import blocks_of
from fxprune.passes import (
    CalibrateBatchNorm,
    DecomposeBasis,
    FuseBatchNorm,
    LinearizeActivations,
    MergeBasis,
    OverParameterize,
    PruneChannels,
    PruneWeights,
    RemoveIdentity,
    RemoveLayers,
    Reparameterize,
)
from fxprune.pipeline import Pass
from fxprune.planning import Plan, make_plan
from tools._fuzz_check import random_removal
from tools._fuzz_program import Choices

_TRIES = 4
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        name: Of the pass, or of what is done to the model between passes.
        code: The step as Python.
        pass_: The pass; None for an edit.
        edit: What somebody does to the model between two passes.
    """

    name: str
    code: str
    pass_: Pass | None = None
    edit: Callable[[Traced], Traced] | None = None


def draw_step(choices: Choices, traced: Traced) -> Step:
    """Draw a step that may run on a graph.

    Raises:
        FxPruneError: There is no plan for what was drawn; nothing else that the library raises is expected.
    """
    names = list(STEPS)
    if whole_blocks(traced.module):  # what only makes sense in pairs would rarely meet
        names += ["drop_vectors", "merge_basis"] * 3
    if blocks_of(traced.module):
        names += ["reparameterize"] * 3
    name = _pick(choices, names)
    for _ in range(_TRIES):
        if not _is_idle(name, traced):
            break
        name = _pick(choices, names)
    return STEPS[name](choices, traced)


def _is_idle(name: str, traced: Traced) -> bool:
    """Whether a pass has nothing to do on this graph for a reason that is seen at once; most steps would be idle."""
    if name == "remove_layers":
        return not find_layers(traced).names
    if name == "calibrate_batchnorm":
        return not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in traced.module.modules())
    if name == "prune_channels":
        return not find_groups(traced).families
    return name in ("drop_vectors", "merge_basis") and not basis_paths(traced.module)


def _pick(choices: Choices, options: Sequence[Any]) -> Any:
    return options[choices.integer(0, len(options) - 1)]


def _few(choices: Choices, options: Sequence[Any], most: int = 3) -> list[Any]:
    """Choose one to a few of them, in their order."""
    count = choices.integer(1, min(most, len(options)))
    chosen = {choices.integer(0, len(options) - 1) for _ in range(count)}
    return [options[index] for index in sorted(chosen)]


def _of(pass_: Pass, code: str = "") -> Step:
    return Step(pass_.name, code or repr(pass_), pass_)


def _paths(traced: Traced) -> list[str]:
    """Return the paths of all convolutions and linear layers that are called."""
    module = traced.module
    called = [str(node.target) for node in module.graph.find_nodes(op="call_module")]
    return list(dict.fromkeys(path for path in called if isinstance(module.get_submodule(path), _LAYERS)))


def _patterns(choices: Choices, traced: Traced) -> dict[str, tuple[str, ...]]:
    """Draw the options ``layers`` and ``exclude``."""
    paths = _paths(traced)
    if not paths or choices.integer(0, 2):
        return {}
    which = "exclude" if choices.integer(0, 1) else "layers"
    return {which: tuple(_few(choices, paths))}


# ---------------------------------------------------------------- the table


def _fuse(choices: Choices, traced: Traced) -> Step:
    return _of(FuseBatchNorm())


def _identity(choices: Choices, traced: Traced) -> Step:
    return _of(RemoveIdentity())


def _reparameterize(choices: Choices, traced: Traced) -> Step:
    return _of(Reparameterize(_pick(choices, (False, True)), _pick(choices, (False, False, True))))


def _over_parameterize(choices: Choices, traced: Traced) -> Step:
    options: dict[str, Any] = {"rate": _pick(choices, (2, 1, 3, 4.0, 1.5)), **_patterns(choices, traced)}
    options["noise"] = _pick(choices, (1.0, 0.0, 0.1))
    if choices.integer(0, 2) == 2:
        options |= {"form": "stacked", "rate": 9}
    if choices.integer(0, 3) == 3 and (paths := _paths(traced)):
        options["rates"] = {_pick(choices, paths): 2}
    return _of(OverParameterize(**options, seed=choices.integer(0, 3)))


def _prune_channels(choices: Choices, traced: Traced) -> Step:
    plan = _plan(choices, traced)
    options: dict[str, Any] = {}
    if plan.compensate == "mean":
        seed = choices.integer(0, 5)
        options = {"calibration": [traced.inputs(4, seed=seed)[0]]}
    allow = choices.integer(0, 3) == 3
    written = f"Plan({plan.removed!r}, traced.fingerprint(), compensate={plan.compensate!r})"
    if options:
        written += f", calibration=[traced.inputs(4, seed={seed})[0]]"
    code = f"PruneChannels({written}{', allow_constant=True' * allow})"
    return _of(PruneChannels(plan, allow_constant=allow, **options), code)


def _plan(choices: Choices, traced: Traced) -> Plan:
    compensate = _pick(choices, (None, None, "constant", "mean"))
    if choices.integer(0, 1) == 0:
        removed = random_removal(find_groups(traced), random.Random(choices.integer(0, 10**6)))
        return Plan(removed, traced.fingerprint(), traced.name, compensate=compensate)
    budget = {_pick(choices, ("channels", "params", "macs", "bytes")): _pick(choices, (0.7, 0.9, 0.5, 0.3))}
    return make_plan(
        traced,
        **budget,
        importance=_pick(choices, ("l2", "l1", "bn_scale", "fpgm", "lamp", "random")),
        allocation=_pick(choices, ("global", "uniform", "isomorphic")),
        round_to=_pick(choices, (1, 2, "auto")),
        compensate=compensate,
        seed=choices.integer(0, 3),
    )


def _remove_layers(choices: Choices, traced: Traced) -> Step:
    level = _pick(choices, ("layer", "block"))
    names = find_layers(traced, level).names
    if names and choices.integer(0, 2) < 2:
        return _of(RemoveLayers(_few(choices, names), level=level))
    budget = {_pick(choices, ("layers", "params", "macs")): _pick(choices, (0.7, 0.5, 0.9))}
    importance = _pick(choices, ("l1", "bn_scale", "random"))
    return _of(RemoveLayers(**budget, importance=importance, level=level, seed=choices.integer(0, 3)))


def _linearize(choices: Choices, traced: Traced) -> Step:
    paths = _paths(traced)
    fitting = [path for path, place in places_of(traced, paths).items() if isinstance(place, Place)]
    if fitting and choices.integer(0, 4):
        paths = fitting
    layers = _few(choices, paths) if paths else []
    share, slope = _pick(choices, (1.0, 0.3, 0.0, 0.75)), _pick(choices, (1.0, 0.5, -0.7))
    return _of(LinearizeActivations(layers, share, slope))


def _decompose(choices: Choices, traced: Traced) -> Step:
    return _of(DecomposeBasis(**_patterns(choices, traced), reorthonormalize=_pick(choices, (False, True))))


def _drop_vectors(choices: Choices, traced: Traced) -> Step:
    rng = random.Random(choices.integer(0, 10**6))
    dropped = {}
    for block in whole_blocks(traced.module):
        assert block.scales is not None
        count = block.scales.numel()
        dropped[block.path] = sorted(rng.sample(range(count), rng.randint(0, count - 1)))
    dropped = {path: positions for path, positions in dropped.items() if positions}
    code = f"with_vectors_dropped(traced, {dropped!r})"
    return Step("drop-vectors", code, edit=lambda given: with_vectors_dropped(given, dropped))


def _merge(choices: Choices, traced: Traced) -> Step:
    return _of(MergeBasis(_pick(choices, (1.0, 0.5, 0.0))))


def _prune_weights(choices: Choices, traced: Traced) -> Step:
    amount: Any = _pick(choices, (0.5, 0.3, 0.9, 0.05))
    scope = _pick(choices, ("local", "global"))
    options: dict[str, Any] = {"criterion": _pick(choices, ("magnitude", "lamp")), "scope": scope}
    options["fill"] = _pick(choices, ("filter", "zero", "layer", "sign"))
    if options["fill"] != "sign":
        options["form"] = _pick(choices, ("dense", "cheap"))
    paths = _paths(traced)
    if choices.integer(0, 1):
        options["exclude"] = ()
    elif paths and scope == "local" and choices.integer(0, 1):
        amount = {path: _pick(choices, (0.5, 0.2, 0.8)) for path in _few(choices, paths)}
        inside = {path.rpartition(".")[0] for path in paths if path.endswith(".sparse")}
        amount = {path.removesuffix(".sparse"): share for path, share in amount.items()} if inside else amount
    return _of(PruneWeights(amount, **options))


def _calibrate(choices: Choices, traced: Traced) -> Step:
    first, count, size = choices.integer(0, 9), choices.integer(1, 3), choices.integer(4, 6)
    batches = [traced.inputs(size, seed=first + number)[0] for number in range(count)]
    code = f"CalibrateBatchNorm([traced.inputs({size}, seed={first} + n)[0] for n in range({count})])"
    return _of(CalibrateBatchNorm(batches), code)


STEPS: dict[str, Callable[[Choices, Traced], Step]] = {
    "remove_identity": _identity,
    "fuse_batchnorm": _fuse,
    "reparameterize": _reparameterize,
    "over_parameterize": _over_parameterize,
    "prune_channels": _prune_channels,
    "prune_weights": _prune_weights,
    "decompose_basis": _decompose,
    "drop_vectors": _drop_vectors,
    "merge_basis": _merge,
    "remove_layers": _remove_layers,
    "linearize_activations": _linearize,
    "calibrate_batchnorm": _calibrate,
}
"""What may be drawn, the simplest first."""
