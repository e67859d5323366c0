"""Trainability-preserving pruning (2207.12534): filters that will go are made independent of those that stay."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.training.filters import Ratios
from fxprune.training.growing import GrowingL2, Schedule

Target = Literal["kept", "orthonormal"]


def gram_loss(rows: Tensor, pruned: Tensor, groups: int = 1, target: Target = "kept") -> Tensor:
    """Return the mean squared distance of the filters' gram matrix from a target, a scalar in the rows' type.

    With ``"kept"`` (section 5.3, "opp_scheme v5" [READ S1]) that is ``sum((w_i . w_j)^2) / N^2`` over all pairs of
    which one filter at least is pruned, the pruned ones with themselves included; pairs of kept filters are free. With
    ``"orthonormal"`` (an ablation, "v5_2" [READ S1]) kept filters are pushed to be orthonormal besides.

    Filters of different groups of a convolution read different inputs, so pairs of them do not count [DESIGN].

    Args:
        rows: One row per filter: [N, elements].
        pruned: Which of them go: N booleans.
        groups: Of the convolution.
        target: See above.
    """
    count = len(rows)
    blocks = rows.reshape(groups, count // groups, -1)
    gram = blocks @ blocks.mT
    stay = (~pruned).to(rows.dtype).reshape(groups, -1)
    both = stay[:, :, None] * stay[:, None, :]
    if target == "kept":
        return (gram * (1 - both)).square().sum() / count**2
    return (gram - torch.diag_embed(stay)).square().sum() / count**2


class TPP(GrowingL2):
    """Trainability-preserving pruning: decorrelates pruned and kept filters, with a penalty that grows.

    To the loss is added ``decorrelate * strength * sum of gram_loss over layers`` (section 5.3 [READ S1]; the mean over
    N^2 makes the weight per pair small, which is as published). The gradient of the pruned filters, their biases, and
    the scales and shifts of the norms behind them, gets the strength times the weight. The schedule, the setting to
    zero and the proof in :meth:`~fxprune.training.growing.GrowingL2.finish` are those of
    :class:`~fxprune.training.growing.GrowingL2`, whose other arguments it has too.

    What differs from the published code, on purpose: norms are found by the users of a layer in the graph and not by
    the order of modules; biases are set to zero with their filters; units that several layers make may go too
    (``residual`` [DESIGN]).

    Each choice can be left out, for ablations: ``decorrelate=0`` is growing L2 with norms, ``batchnorm=False`` leaves
    the norms alone.

    In a loop of your own, with ``model = traced.module``::

        tpp = TPP.begin(traced, 0.9, schedule="short")
        while not tpp.done:
            loss = criterion(model(x), y) + tpp.extra_loss()
            optimizer.zero_grad(); loss.backward(); tpp.after_backward()
            optimizer.step(); tpp.after_step()
        smaller = Pipeline([passes.PruneChannels(tpp.finish())])(traced).traced

    Args:
        traced: The capture around the module that is trained.
        ratios: See :class:`~fxprune.training.growing.PlainL1`.
        schedule: See :class:`~fxprune.training.growing.GrowingL2`.
        residual: See :class:`~fxprune.training.growing.PlainL1`.
        decorrelate: Weight of the decorrelation, 1000 as published.
        batchnorm: Whether scales and shifts of norms are penalised.
        target: See :func:`gram_loss`.

    Raises:
        InputError: An argument is out of range, or as for :class:`~fxprune.training.growing.GrowingL2`.
    """

    name = "tpp"

    def __init__(
        self,
        traced: Traced,
        ratios: Ratios,
        *,
        schedule: Schedule = "published",
        residual: bool = False,
        decorrelate: float = 1000.0,
        batchnorm: bool = True,
        target: Target = "kept",
    ) -> None:
        if not 0 <= decorrelate < float("inf") or target not in ("kept", "orthonormal"):
            raise InputError(
                f"decorrelate={decorrelate} must be 0 or above, and finite, and target={target!r} 'kept' or "
                "'orthonormal'"
            )
        super().__init__(traced, ratios, schedule=schedule, residual=residual, batchnorm=batchnorm)
        self.decorrelate, self.target = decorrelate, target
        self.options |= {"decorrelate": decorrelate, "target": target}

    def extra_loss(self) -> Tensor | float:
        """Return the weighted decorrelation loss of the weights as they are, a scalar in float32 or wider."""
        weight = self.decorrelate * self.strength
        if not weight:
            return 0.0
        terms = []
        for each in self.selection.filters:
            rows = each.rows(self.traced.module)
            with torch.autocast(rows.device.type, enabled=False):  # squares of squares: half precision has no room
                rows = rows if rows.dtype is torch.float64 else rows.float()
                pruned = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
                pruned[torch.tensor(each.pruned, device=rows.device)] = True
                terms.append(gram_loss(rows, pruned, each.groups, self.target))
        return weight * torch.stack(terms).sum()
