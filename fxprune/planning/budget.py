"""What is asked for: the metric, the share to keep, and the multiple that widths are rounded to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch

from fxprune.errors import InputError

METRICS = ("macs", "params", "channels", "bytes", "latency")
TOLERANCE = 0.01  # a plan is on budget when it uses at least this much less than all of it
_STEPS = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Budget:
    """Keep the share ``keep`` of ``metric``."""

    metric: str
    keep: float

    def __str__(self) -> str:
        return f"{self.metric}={self.keep:g}"


def parse_budget(**given: object) -> Budget:
    """Return the one budget among keyword arguments named after ``METRICS``.

    Raises:
        InputError: none or several are given, or the share is no finite number in (0, 1].
    """
    chosen = {metric: keep for metric, keep in given.items() if keep is not None}
    if len(chosen) != 1:
        named = ", ".join(f"{metric}=" for metric in METRICS)
        got = " and ".join(f"{metric}={keep}" for metric, keep in chosen.items()) or "none"
        raise InputError(
            f"A plan needs exactly one budget out of {named}, each the share to keep; got {got}. "
            "Example: macs=0.5 keeps half the MACs."
        )
    ((metric, keep),) = chosen.items()
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise InputError(f"The budget {metric}={keep!r} is no number; give the share to keep, such as {metric}=0.5.")
    share = float(keep)
    if not (math.isfinite(share) and 0.0 < share <= 1.0):
        hint = f" Did you mean {metric}={share / 100:g}?" if 1.0 < share <= 100.0 else ""
        raise InputError(
            f"The budget {metric}={share:g} is outside (0, 1]; it is the share to keep, so 0.5 keeps half.{hint}"
        )
    return Budget(metric, share)


def native_step() -> int:
    """Return the channel block of convolution kernels on this CPU: 16 with AVX-512, else 8 (AVX2, NEON)."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def rounding_steps(round_to: int | str, measured: int | None = None) -> tuple[int, ...]:
    """Return the multiples to try, coarsest first: the given one, or for ``auto`` the step in which a runtime works.

    Args:
        round_to: a multiple, or ``auto``, which starts at the step and halves it down to 1.
        measured: the step that was measured; None takes this CPU's channel block.

    Raises:
        InputError: ``round_to`` is neither ``auto`` nor a whole number of at least 1.
    """
    if round_to == "auto":
        return tuple(step for step in _STEPS if step <= (measured or native_step()))
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InputError(
            f"round_to={round_to!r} is neither 'auto' nor a whole number of at least 1; 1 switches rounding off."
        )
    return (round_to,)
