"""The distances of knowledge distillation, as plain modules of (student, teacher) tensors.

All of them compute in float32 at least and outside autocast, since Gram matrices and exponentials leave the range of
half precision. None sends a gradient to the teacher.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.errors import InputError

SMALLEST_BATCH = 4  # a Gram matrix of fewer samples says next to nothing; its rows are almost unit vectors


class SimilarityPreserving(nn.Module):
    """Similarity-preserving distillation (Tung and Mori, 2019, section 3.1) [READ S3; rows normalised, squared norm].

    With features flattened to ``f`` of (b, n)::

        G = f f^T,  rows of G scaled to unit length,  loss = || G_teacher - G_student ||_F^2 / b^2

    Only b x b matrices are compared, so the numbers of channels may differ. ``b`` is the batch of this process and this
    forward pass: under several processes, or with accumulated gradients, similarities are not taken across the parts.
    Batches of fewer than 4 samples give 0 [DESIGN].
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar without unit.

        Args:
            student: Features (b, ...), with gradients.
            teacher: Features (b, ...); the other dimensions may differ.

        Raises:
            InputError: The batches differ, or a tensor has no dimension besides the batch.
        """
        _check_batches(student, teacher)
        batch = student.shape[0]
        with torch.autocast(student.device.type, enabled=False):
            if batch < SMALLEST_BATCH:
                return _wide(student).new_zeros(())
            difference = _gram(teacher.detach()) - _gram(student)
            return difference.square().sum() / batch**2


class SoftTargets(nn.Module):
    """Distillation of logits (Hinton et al., 2015, section 2) [MEM]: T^2 KL(softmax(teacher/T) || softmax(student/T)).

    The mean is over samples, and over positions where the logits have more than two dimensions.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"the temperature of distillation is {temperature}; give a number above 0, for example 4")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss in nats, a scalar.

        Args:
            student: Logits (b, classes, ...).
            teacher: Logits of the same shape.

        Raises:
            InputError: The shapes differ.
        """
        if student.shape != teacher.shape or student.ndim < 2:
            raise InputError(
                f"logits can only be distilled between outputs of one shape (batch, classes, ...): the student returns "
                f"{tuple(student.shape)}, the teacher {tuple(teacher.shape)}"
            )
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = (
                F.log_softmax(_wide(logits).movedim(1, -1).flatten(0, -2) / self.temperature, dim=1)
                for logits in (student, teacher.detach())
            )
            return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2


class FeatureMatching(nn.Module):
    """Mean squared difference between features, where the channels are brought together first [DESIGN].

    Either ``kept`` names the teacher's channels that the student still has, and nothing is learned, or a learned linear
    map over the channels (a 1x1 convolution) widens the student's features to the teacher's. The map starts as zeros
    with ones on its diagonal.

    Args:
        channels: Number of the student's and of the teacher's channels.
        dim: Dimension of the channels: 1 behind a convolution, -1 behind a linear layer.
        kept: Indices of the teacher's channels, one for each of the student's; None learns a map unless the numbers are
            equal.
    """

    kept: Tensor | None

    def __init__(self, channels: tuple[int, int], dim: int = 1, kept: list[int] | None = None) -> None:
        super().__init__()
        ours, theirs = channels
        if kept is not None and (len(kept) != ours or not all(0 <= index < theirs for index in kept)):
            raise InputError(
                f"the plan keeps {len(kept)} of the teacher's {theirs} channels, but the student has {ours} there; "
                "give the plan with which this student was cut from this teacher"
            )
        self.dim = dim
        self.register_buffer("kept", None if kept is None else torch.tensor(kept, dtype=torch.long))
        self.adapter = nn.Linear(ours, theirs, bias=False) if kept is None and ours != theirs else None
        if self.adapter is not None:
            nn.init.eye_(self.adapter.weight)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean squared difference, a scalar in the features' unit squared.

        Args:
            student: Features (b, ...) with the channels in ``dim``.
            teacher: Features of the same shape but for the channels.

        Raises:
            InputError: The shapes do not match once the channels do.
        """
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = _wide(student), _wide(teacher.detach())
            if self.kept is not None:
                theirs = theirs.index_select(self.dim, self.kept.to(theirs.device))
            if self.adapter is not None:
                self.adapter.to(ours.device)
                ours = self.adapter(ours.movedim(self.dim, -1)).movedim(-1, self.dim)
            if ours.shape != theirs.shape:
                raise InputError(
                    f"features of shapes {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be matched entry by "
                    "entry; name layers of one resolution, or use similarity-preserving distillation, which needs none"
                )
            return F.mse_loss(ours, theirs)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _gram(features: Tensor) -> Tensor:
    flat = _wide(features).flatten(1)
    return F.normalize(flat @ flat.mT, p=2, dim=1)


def _check_batches(student: Tensor, teacher: Tensor) -> None:
    if student.ndim < 2 or teacher.ndim < 2 or student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"similarities need features (batch, ...) of one batch: the student gave {tuple(student.shape)}, "
            f"the teacher {tuple(teacher.shape)}"
        )
