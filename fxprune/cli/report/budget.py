"""What the last measurement says of a budget of latency."""

from __future__ import annotations

from typing import Any


def hold_to_budget(report: dict[str, Any], budget: float) -> None:
    """Hold the last measurement against a budget of latency: over it fails, and what decides nothing is said."""
    found = report["latency"]
    low, high = found["ratio_low"], found["ratio_high"]
    if high <= budget:
        return
    report["ok"] = report["ok"] and low <= budget
    report["notes"].append(
        f"The last measurement is {'over' if low > budget else 'not clearly within'} the budget of {budget:g}: "
        f"{found['ratio']:.3f} [{low:.3f}, {high:.3f}], while the plan was measured within it. Other work on the "
        "machine does this; measure again for longer (--seconds) or ask for a little less."
    )
