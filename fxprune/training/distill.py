"""Knowledge distillation from the dense model into the pruned one, as an objective of any training loop."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputError
from fxprune.graph_tools import memory_of
from fxprune.planning import Plan
from fxprune.training.checkpoint import checksum
from fxprune.training.features import Recorder, logits_of
from fxprune.training.losses import FeatureMatching, SimilarityPreserving, SoftTargets
from fxprune.training.objectives import Objective, check_same_options
from fxprune.training.pairs import channel_dim, channels_of, find_pairs, kept_channels


class Distillation(Objective):
    """A student that listens to its frozen teacher: ``extra_loss`` after every forward pass of the student.

    The loss is ``gamma * similarity + logits * soft targets + features * feature matching``; similarity and feature
    matching are averaged over the pairs of layers. A weight of 0 leaves a term out, and its layers are not recorded.

    For linear over-parameterisation (2204.11444, abstract [ABS]) the outputs of the expanded blocks, before batch norm,
    are compared with those of the dense layers that they stand for. The average over layers and the place of the hooks
    are [DESIGN]; gamma = 3000 is that of similarity-preserving distillation [READ S3].

    The teacher runs in ``extra_loss`` on the very inputs that the student has seen, in eval mode and without gradients,
    under the autocast of the caller; it is moved to the device of the inputs. With accumulated gradients and several
    processes the batch of the similarities is the one of this process and this forward pass.

    Use it as a context manager or call :meth:`close`: both models are then as they were, without hooks.

    Args:
        student: The model that is trained; of a wrapper for several processes, the module inside is taken.
        teacher: The dense model. It must not share parameters with the student: copy it first.
        layers: ``"blocks"`` (default), ``"last"``, names or patterns, or a mapping; see
            :func:`fxprune.training.pairs.find_pairs`.
        gamma: Weight of the similarity-preserving term.
        logits: Weight of the soft targets.
        features: Weight of the feature matching.
        temperature: Of the soft targets.
        plan: The plan by which the student was cut from the teacher. With it feature matching compares the kept
            channels and learns nothing; without, it learns a map wherever the widths differ, whose parameters
            (:meth:`parameters`) belong into the optimiser.

    Raises:
        InputError: The models share parameters, a weight is negative, all are 0, or a layer is missing.
    """

    def __init__(  # noqa: PLR0913 - each is one choice of the method
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        layers: str | Iterable[str] | Mapping[str, str] = "blocks",
        gamma: float = 3000.0,
        logits: float = 0.0,
        features: float = 0.0,
        temperature: float = 4.0,
        plan: Plan | None = None,
    ) -> None:
        student, teacher = _inner(student, "student"), _inner(teacher, "teacher")
        _check_apart(student, teacher)
        _check_weights({"gamma": gamma, "logits": logits, "features": features})
        self.gamma, self.logits, self.features = gamma, logits, features
        self.pairs = find_pairs(student, teacher, layers) if gamma or features else []
        self.similarity = SimilarityPreserving()
        self.soft_targets = SoftTargets(temperature)
        ours, theirs = dict(student.named_modules()), dict(teacher.named_modules())
        self.matching = nn.ModuleList()
        for pair in self.pairs if features else ():
            layer = theirs[pair.teacher]
            widths = (channels_of(ours[pair.student], pair.student), channels_of(layer, pair.teacher))
            kept = None if plan is None else kept_channels(plan.removed, pair.teacher, layer)
            self.matching.append(FeatureMatching(widths, channel_dim(layer), kept))
        self.matching.to(next(iter(student.parameters()), torch.empty(0)).device)
        self._teacher = teacher
        self._modes = {module: module.training for module in teacher.modules()}
        self._student_record = Recorder(student, (pair.student for pair in self.pairs), with_gradients=True)
        self._teacher_record = Recorder(teacher, (pair.teacher for pair in self.pairs), with_gradients=False)
        self._closed = False

    def extra_loss(self) -> Tensor:
        """Return the weighted loss of the last forward pass of the student, a scalar in float32.

        Raises:
            InputError: The student has not run with gradients since the last call, or a layer gave no features.
        """
        record = self._student_record
        if self._closed or record.inputs is None:
            raise InputError(
                "there is no forward pass to distil: "
                + ("this distillation is closed; make a new one" if self._closed else _HOW_TO_CALL)
            )
        args, kwargs = record.inputs
        try:
            output = self._ask_teacher(args, kwargs)
            return self._loss(output)
        finally:  # frees the features of both, and keeps one pass from being counted twice
            record.clear()
            self._teacher_record.clear()

    def _ask_teacher(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        devices = [leaf.device for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if devices:
            self._teacher.to(devices[0])
        self._teacher.eval()
        with torch.no_grad():
            return self._teacher(*args, **kwargs)

    def _loss(self, teacher_output: Any) -> Tensor:
        student_output = self._student_record.result
        terms: list[Tensor] = []
        for index, pair in enumerate(self.pairs):
            calls = self._student_record.tensors(pair.student, "student")
            answers = self._teacher_record.tensors(pair.teacher, "teacher")
            if len(calls) != len(answers):
                raise InputError(
                    f"layer {pair.student!r} ran {len(calls)} times in the student and {pair.teacher!r} {len(answers)} "
                    "times in the teacher, so their features do not correspond; name another layer"
                )
            share = len(self.pairs) * len(calls)  # the mean over layers, and over the calls of a shared one
            for ours, theirs in zip(calls, answers, strict=True):
                if self.gamma:
                    terms.append(self.gamma / share * self.similarity(ours, theirs))
                if self.features:
                    terms.append(self.features / share * self.matching[index](ours, theirs))
        if self.logits:
            terms.append(self.logits * self.soft_targets(logits_of(student_output), logits_of(teacher_output)))
        return torch.stack(terms).sum()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the learned maps of feature matching; there are none with a plan."""
        return self.matching.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return the options, a checksum of the teacher, and the learned maps."""
        return {"options": self._options(), "matching": self.matching.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the learned maps.

        Raises:
            InputError: The training began with other options or another teacher.
        """
        check_same_options(self._options(), state.get("options"))
        self.matching.load_state_dict(state["matching"])

    def _options(self) -> dict[str, Any]:
        return {
            "layers": [list(pair) for pair in self.pairs],
            "gamma": self.gamma,
            "logits": self.logits,
            "features": self.features,
            "temperature": self.soft_targets.temperature,
            "teacher": self._checksum,
        }

    @functools.cached_property
    def _checksum(self) -> int:
        """A number that tells one teacher from another; it does not change while a student learns."""
        named = (*self._teacher.named_parameters(), *self._teacher.named_buffers())
        return checksum({name: value.detach().cpu() for name, value in named})

    def finish(self) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Remove all hooks, and give the teacher back in the mode in which it came; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._student_record.close()
        self._teacher_record.close()
        for module, training in self._modes.items():
            module.training = training

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


_HOW_TO_CALL = (
    "call the student (with gradients enabled) before each extra_loss(), and extra_loss() once per forward pass; if it "
    "was called, then through a copy: give the distillation the very module that is trained"
)


def _inner(model: nn.Module, whose: str) -> nn.Module:
    """Return the module inside a wrapper for several processes."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner: nn.Module = model.module
        return inner
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the {whose} is a {type(model).__name__}, not a torch.nn.Module; of a captured model, give .module"
        )
    return model


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    ours = {memory_of(tensor) for tensor in (*student.parameters(), *student.buffers())}
    named = (*teacher.named_parameters(), *teacher.named_buffers())
    shared = [name for name, value in named if memory_of(value) in ours]
    if shared or student is teacher:
        raise InputError(
            f"student and teacher share {shared[0] if shared else 'everything'}, so that the teacher would change "
            "while the student learns; give copy.deepcopy(teacher)"
        )


def _check_weights(weights: dict[str, float]) -> None:
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"the weight {name}={value} of distillation must be 0 or above, and finite")
    if not any(weights.values()):
        raise InputError("all weights of the distillation are 0; give gamma, logits or features a weight above 0")
