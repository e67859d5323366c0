"""Training of a model whose weights were pruned: what is pruned stays pruned."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.linear.sparsity import CHANGED, fills_of, pruned_of
from fxprune.linear.split import split_paths
from fxprune.training.objectives import Objective, check_same_options


class KeepPruned(Objective):
    """Keeps pruned weights what they are in any training: zero, or one number per filter, which is trained.

    All pruned entries of a filter get the mean of their gradients, and after each step the mean of their values, so
    that they stay equal, or of equal size where they were filled with their signs: training moves in the space of the
    models that :class:`~fxprune.passes.PruneWeights` gives. In the cheap form the number is a parameter of its own.

    In ``finetune``: ``objectives=[lambda model: KeepPruned.begin(traced.with_module(model))]``.

    Args:
        traced: The capture around the module that is trained, as ``PruneWeights`` left it.

    Raises:
        InputError: Nothing of it is pruned, or the pruned weights of a filter are not of one size.
    """

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.masks, lost = pruned_of(traced.module)
        for path, why in lost.items():
            if why == CHANGED:
                raise InputError(
                    f"the pruned weights of {path} hold several values: it was trained since; run PruneWeights again"
                )
        if not self.masks:
            raise InputError("no weight of this model is pruned; run the pass PruneWeights on it first")
        split = set(split_paths(traced.module))
        self.names = {path: f"{path}.sparse.weight" if path in split else f"{path}.weight" for path in self.masks}
        self.signs: dict[str, Tensor] = {}
        for path, mask in self.masks.items():
            weight = self._weight(path).detach()
            signs = torch.ones_like(weight) if fills_of(weight, mask) is not None else weight.sign()
            self.signs[path] = signs * bool((weight * mask).any())  # 0 where zeros stand in their place

    def after_backward(self) -> None:
        """Give all pruned entries of a filter the mean of their gradients."""
        for path in self.masks:
            gradient = self._weight(path).grad
            if gradient is not None:
                self._level(path, gradient)

    def after_step(self) -> None:
        """Make them equal again: optimisers round, and may treat equal gradients differently."""
        for path in self.masks:
            self._level(path, self._weight(path))

    def finish(self) -> Traced:
        """Make them equal in what is handed over too; return the capture around the trained module."""
        self.after_step()
        return self.traced

    def state_dict(self) -> dict[str, Any]:
        """Return which entries are pruned, as a checksum for each layer."""
        return {"options": self._options()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            InputError: The training began with other weights pruned.
        """
        check_same_options(self._options(), state.get("options"))

    def _options(self) -> dict[str, Any]:
        return {f"pruned[{path}]": zlib.crc32(mask.cpu().numpy().tobytes()) for path, mask in self.masks.items()}

    def _level(self, path: str, values: Tensor) -> None:
        with torch.no_grad():
            mask, signs = self.masks[path].flatten(1), self.signs[path].flatten(1)
            rows = values.detach().double().flatten(1) * signs * mask
            means = rows.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
            levelled = torch.where(mask, (means * signs).to(values.dtype), values.flatten(1))
            values.copy_(levelled.reshape(values.shape))

    def _weight(self, path: str) -> Any:
        return self.traced.module.get_parameter(self.names[path])
