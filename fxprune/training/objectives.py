"""What every training-time method offers to a training loop: four calls.

A loop of the user's own needs one line for each::

    loss = criterion(model(x), y) + objective.extra_loss()      # after the forward pass
    loss.backward()
    objective.after_backward()                                  # gradients are there and may be changed
    optimizer.step()
    objective.after_step()                                      # weights have moved and may be corrected
    ...
    result = objective.finish()                                 # once, when training ends

Methods that prune as they train begin with a capture of the very module that is trained, ``Method.begin(traced, ...)``,
and their ``finish`` returns what came of it: a ``Plan``, or a ``Traced``.

``extra_loss`` is asked once per forward pass, also where gradients are accumulated over several; ``after_backward`` and
``after_step`` once per step of the optimiser, after the gradients have been unscaled and averaged over processes, and
before they are clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from fxprune.errors import InputError


@runtime_checkable
class ObjectiveLike(Protocol):
    """The protocol; :class:`Objective` is the base class that does nothing."""

    def extra_loss(self) -> Tensor | float:
        """Return what is added to the loss of the forward pass that has just been run: a scalar."""
        ...

    def after_backward(self) -> None:
        """Change gradients, before the optimiser's step."""
        ...

    def after_step(self) -> None:
        """Change weights or the method's own state, after the optimiser's step."""
        ...

    def finish(self) -> Any:
        """Do what is due when training is over, leave the model as it should be used, and return the result, if any."""
        ...


def check_same_options(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> None:
    """Refuse to go on with a training that began with other options.

    Args:
        now: Of the objective, as plain data.
        then: What its state holds of them; None where it is older than they are.

    Raises:
        InputError: One of them differs.
    """
    if then is None:
        return
    for key, value in now.items():
        if then.get(key) != value:
            raise InputError(
                f"this training began with {key}={then.get(key)!r}, and goes on with {value!r}; give the options that "
                "it began with, or start again"
            )


class Objective:
    """An objective that does nothing; methods override what they need.

    Beyond the protocol, it may have parameters to train and state to keep, for loops that can be resumed.

    Attributes:
        keeps_last: Whether the weights of the last step are wanted, and not those of the best epoch: for methods whose
            work is done only at the end of a schedule. Training then does not stop early either.
    """

    keeps_last: bool = False

    @classmethod
    def begin(cls, *args: Any, **options: Any) -> Self:
        """Make the objective when its training begins: the same as calling the class."""
        return cls(*args, **options)

    def expect(self, steps: int) -> None:
        """Hear how many steps of the optimiser there will be, before the first; refuse them by an ``InputError``."""
        return

    def extra_loss(self) -> Tensor | float:
        """Return 0."""
        return 0.0

    def after_backward(self) -> None:
        """Do nothing."""
        return

    def after_step(self) -> None:
        """Do nothing."""
        return

    def finish(self) -> Any:
        """Do nothing, and return None."""
        return None

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return parameters of the method's own, to be given to the optimiser besides those of the model."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on after an interruption: tensors, numbers, text, lists and dictionaries."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        return
