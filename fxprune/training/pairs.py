"""Which layer of a student answers to which layer of its teacher."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.errors import InputError
from fxprune.linear.basis import basis_paths

BLOCKS = "fxprune.blocks"  # GraphModule.meta: path of an expanded block -> path of its last layer


class Pair(NamedTuple):
    """Paths of two layers whose features are compared."""

    student: str
    teacher: str


def find_pairs(student: nn.Module, teacher: nn.Module, layers: str | Iterable[str] | Mapping[str, str]) -> list[Pair]:
    """Return the pairs that ``layers`` names.

    Args:
        student: Where a layer was expanded or decomposed, its graph's metadata say which layer ends what it became.
            Of one that was split into a sparse layer and a box sum no layer gives the output, so it has no pair.
        teacher: The dense model; layers that were not renamed have its names in the student, too.
        layers: ``"blocks"``: every expanded block and the layer that it stands for. ``"last"``: the last convolution
            that both have (the last linear layer but the final one where there is none) [DESIGN: S3 takes the features
            of the last stage]. Else names or glob patterns of the teacher's layers, or a mapping from layers of the
            student to layers of the teacher.

    Raises:
        InputError: A name fits no layer that both have.
    """
    ends = _ends(student)
    if isinstance(layers, Mapping):
        pairs = [Pair(ends.get(ours, ours), theirs) for ours, theirs in layers.items()]
    elif layers == "blocks":
        pairs = [Pair(last, path) for path, last in _blocks(student).items()]
        if not pairs:
            raise InputError(
                "the student has no over-parameterised blocks to distil into; expand layers first, or name layers: "
                "layers='last', or names of layers that student and teacher share"
            )
    elif layers == "last":
        pairs = [_last(student, teacher, ends)]
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        pairs = [pair for pattern in patterns for pair in _matching(student, teacher, ends, pattern)]
    _check(pairs, student, teacher)
    return list(dict.fromkeys(pairs))


def channel_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's output that holds its channels."""
    return -1 if isinstance(layer, nn.Linear) else 1


def channels_of(layer: nn.Module, path: str) -> int:
    """Return how many channels a layer gives out.

    Raises:
        InputError: The layer does not say.
    """
    if isinstance(layer, nn.Sequential) and len(layer):
        return channels_of(layer[-1], path)
    for name in ("out_channels", "out_features", "num_features"):
        if isinstance(value := getattr(layer, name, None), int):
            return value
    raise InputError(
        f"layer {path!r} is a {type(layer).__name__}, which does not say how many channels it gives out; match "
        "features at a convolution, a linear layer or a batch norm"
    )


def kept_channels(removed: Mapping[str, Mapping[int, list[int]]], path: str, layer: nn.Module) -> list[int]:
    """Return the output channels of a teacher's layer that a plan leaves, in order.

    Args:
        removed: ``Plan.removed``.
        path: Name of the layer.
        layer: The teacher's layer.

    Raises:
        InputError: The layer is a grouped transposed convolution, whose weight does not list its output channels.
    """
    total = channels_of(layer, path)
    transposed = isinstance(layer, _ConvTransposeNd)
    if isinstance(layer, _ConvTransposeNd) and layer.groups > 1:
        raise InputError(
            f"layer {path!r} is a grouped transposed convolution, whose kept channels cannot be read from a plan; name "
            "the layer behind it"
        )
    gone = set(removed.get(f"{path}.weight", {}).get(1 if transposed else 0, ()))
    return [index for index in range(total) if index not in gone]


def _blocks(student: nn.Module) -> dict[str, str]:
    meta: Any = student.meta if isinstance(student, fx.GraphModule) else {}
    return dict(meta.get(BLOCKS, {}))


def _ends(student: nn.Module) -> dict[str, str]:
    """Return the layer whose output is that of a layer which was expanded or decomposed, by the path of that one."""
    known = {f"{path}.mix" for path in basis_paths(student)} if isinstance(student, fx.GraphModule) else set[str]()
    return {end.rpartition(".")[0]: end for end in known & set(_called(student))} | _blocks(student)


def _called(model: nn.Module) -> list[str]:
    """Return the names of layers in the order in which they are called, as far as the model says."""
    if isinstance(model, fx.GraphModule):
        return [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
    return [path for path, _ in model.named_modules() if path]


def _shared(student: nn.Module, teacher: nn.Module, ends: dict[str, str]) -> list[str]:
    """Return the names of layers of the teacher that the student calls too, or calls the end of."""
    ours = set(_called(student))
    return [path for path in dict.fromkeys(_called(teacher)) if ends.get(path, path) in ours]


def _last(student: nn.Module, teacher: nn.Module, ends: dict[str, str]) -> Pair:
    layers, shared = dict(teacher.named_modules()), _shared(student, teacher, ends)
    convolutions = [path for path in shared if isinstance(layers[path], _ConvNd)]
    linear = [path for path in shared if isinstance(layers[path], nn.Linear)][:-1]
    if not convolutions and not linear:
        raise InputError(
            "student and teacher share no convolution and no hidden linear layer by name, so there is no 'last' one; "
            "name the layers to compare"
        )
    path = (convolutions or linear)[-1]
    return Pair(ends.get(path, path), path)


def _matching(student: nn.Module, teacher: nn.Module, ends: dict[str, str], pattern: str) -> list[Pair]:
    names = _shared(student, teacher, ends)
    found = [path for path in names if fnmatch.fnmatchcase(path, pattern)]
    if not found:
        near = ", ".join(names[:6])
        raise InputError(
            f"{pattern!r} names no layer that student and teacher share; layers they share are {near or '(none)'}"
            f"{', ...' if len(names) > 6 else ''}"
        )
    return [Pair(ends.get(path, path), path) for path in found]


def _check(pairs: list[Pair], student: nn.Module, teacher: nn.Module) -> None:
    listed = ", ".join("=".join(pair) for pair in pairs[:6])
    for model, whose, paths in (
        (student, "student", [pair.student for pair in pairs]),
        (teacher, "teacher", [pair.teacher for pair in pairs]),
    ):
        layers = dict(model.named_modules())
        for path in paths:
            if path not in layers or not path:
                raise InputError(
                    f"the {whose} has no layer {path!r}; the pairs of layers are {listed}. "
                    "Give the dense model that this student was made from as the teacher, or name other layers"
                )
    if not pairs:
        raise InputError("no layers were named to distil between; give at least one, or layers='last'")
