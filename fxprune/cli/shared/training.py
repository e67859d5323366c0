"""What every command that trains shares: where a training lies, what it is fed, and how it is told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.cli.shared.console import err, say

if TYPE_CHECKING:
    from fxprune.training import Splits
    from fxprune.training.history import Row

TEACHER, OBJECTIVES = "for its teacher", "of its objectives"  # whose a loss beside the labels' is
TRAINING = "training"  # folder in --out: what a training goes on from, and its metrics


def input_of(splits: Splits) -> str:
    """Return the specification of an input like the images."""
    return "x".join(map(str, (1, *splits.train[0][0].shape)))


def say_epoch(row: Row, epochs: int, whose: str = TEACHER) -> None:
    """Show the figures of an epoch; ``whose`` says what adds to the loss."""
    extra = f" + {row['extra_loss']:.4f} {whose}" if row["extra_loss"] else ""
    right = f", {row['validation_accuracy']:.1%} right" if "validation_accuracy" in row else ""
    say(
        f"{row['seconds']:6.1f} s  epoch {row['epoch'] + 1}/{epochs}: loss {row['train_loss']:.4f}{extra}, "
        f"on the validation set {row['validation_loss']:.4f}{right}",
        err,
    )
