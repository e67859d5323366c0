"""What ``report.json`` says of trainings, in the words in which a person reads it."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]
HEAD = ("step", "methods", "epochs", "steps", "accuracy before", "after")


def trainings(report: Report) -> list[tuple[str, ...]]:
    """Return (step, methods and their options, epochs, steps of the optimiser, accuracy before, after) of trainings."""
    return [
        (
            f"step {each['step']}",
            "; ".join(f"{name} {_options(options)}".strip() for name, options in each["methods"].items()) or "none",
            str(each["recipe"]["epochs"]),
            str(each["steps"]),
            f"{each['accuracy']['before']:.2%}",
            f"{each['accuracy']['after']:.2%}",
        )
        for each in report.get("trainings", ())
    ]


def _options(options: dict[str, Any]) -> str:
    return f"({', '.join(f'{key} = {value}' for key, value in options.items())})" if options else ""


def accuracy(report: Report) -> str:
    """Say how many test images are right before anything was pruned, and in the end; empty without data."""
    found = report.get("accuracy")
    if not found:
        return ""
    return f"accuracy on the test set of {report['data']}: {found['dense']:.2%} dense, {found['after']:.2%} in the end"
