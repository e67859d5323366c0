"""Networks that people write by hand, each cut at random and held to its masked original; what stays, and why.

    python tools/oddities.py --markdown docs/oddities.md
    python tools/oddities.py --only 'lstm*'

Nobody says anything about a network: it is captured, half of the units of each kind are removed, the cut graph is
compared in float64, and the cut weights are written back into the network's own code, which has to compute the same.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import fxprune
from fxprune.channels import Groups
from fxprune.eager import apply_to
from fxprune.errors import FxPruneError, VerifyError
from tools import _oddity_images, _oddity_layers, _oddity_models, _oddity_sequences  # noqa: F401  (they register)
from tools._oddity_table import ODDITIES, Oddity, made
from tools._records import write_text

ORDINARY = (
    "the model returns it",
    "reads an input that carries no channels",
    "meets a batch, space or sequence dimension",
    "meets the model's input",
    "kernel taps",
)
"""Reasons that say no more than that a dimension is that of an input or output, or beside them."""


@dataclass(frozen=True)
class Found:
    """What came of one network.

    Attributes:
        units: How many units can be removed.
        macs: The share of the multiply-accumulates that is left when half of them go.
        error: The largest error against the masked original, in float64, relative to the largest output.
        eager: The error of the network's own code on the cut weights; None where it does not take them.
        refused: Why it does not ("" where it does).
        stays: Dimensions that no index can be removed of for a reason that is not an ordinary one, by reason.
        notes: What the capture says.
    """

    units: int
    macs: float
    error: float
    eager: float | None
    refused: str
    stays: dict[str, list[str]]
    notes: tuple[str, ...]


def check(oddity: Oddity) -> Found:
    """Capture a network, cut it, and compare.

    Raises:
        FxPruneError: It cannot be captured or cut, or the result is another function: this is what is looked for.
    """
    model = made(oddity)
    traced = fxprune.trace(copy.deepcopy(model), oddity.args)
    groups = fxprune.find_groups(traced)
    stays = frozen(groups)
    if not groups.live.any():
        return Found(0, 1.0, 0.0, None, "nothing was cut", stays, traced.notes)
    plan = fxprune.make_plan(traced, channels=0.5, round_to=1, allocation="uniform", groups=groups)
    pruned = fxprune.cut(traced, plan, groups)
    checked = fxprune.verify_cut(traced, pruned, plan, groups)
    if not checked.live:
        raise VerifyError("the outputs are the same for all inputs that were tried; give the oddity other weights")
    macs = fxprune.count(pruned).macs / fxprune.count(traced).macs
    try:
        eager, refused = apply_to(pruned, model).max_relative_error, ""
    except FxPruneError as problem:
        eager, refused = None, str(problem)
    return Found(int(groups.live.sum()), macs, checked.max_relative_error, eager, refused, stays, traced.notes)


def frozen(groups: Groups) -> dict[str, list[str]]:
    """Return dimensions of parameters that stay as a whole, by reason, without the ordinary ones."""
    trained = {name for name, _ in groups.traced.module.named_parameters()}
    found: dict[str, list[str]] = {}
    for name, dim in groups.parameters:
        axis = groups.axis(name, dim)
        if axis is None or name not in trained or groups.live[axis].any():
            continue
        reasons = {groups.reason(int(unit)).split(" (at ")[0] for unit in axis}
        reasons = {reason for reason in reasons if not reason.startswith(ORDINARY)}
        if reasons:
            found.setdefault("; ".join(sorted(reasons)), []).append(f"{name}:{dim}")
    return found


def row(oddity: Oddity, found: Found) -> str:
    """Return a line of the table."""
    code = _why(found.refused) if found.eager is None else f"{found.eager:.0e}"
    stays = "; ".join(f"{', '.join(f'`{p}`' for p in places)}: {why}" for why, places in found.stays.items())
    cells = [oddity.title, str(found.units), f"{found.macs:.0%}", f"{found.error:.0e}", code, stays]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _why(refused: str) -> str:
    """Return what a refusal to write back comes from: the line that has a width in it, or that the code divides by."""
    line = re.search(r" at (\S+?):\d+ \((.*?)\)\. ", refused)
    if "nn.MultiheadAttention" in refused:
        return "`nn.MultiheadAttention` has one width for all of its parts"
    if line:
        return f"a width in its code: `{line[2][:70]}`"
    return "computes with a width" if "computes something else" in refused else refused


def markdown(results: dict[str, Found]) -> str:
    """Return the page."""
    cut = sum(found.units > 0 for found in results.values())
    largest = max(found.error for found in results.values())
    text = [
        "# Oddities",
        "",
        "Written by `python tools/oddities.py --markdown docs/oddities.md`. Networks that people write by hand,",
        "small, with seeded random weights, and with nothing said about them: half of the units of each kind are",
        "removed, and the cut graph is compared with the masked original in float64 (*error*, relative to the",
        "largest output). *Own code* is the error of the network's own Python on the cut weights (what cannot run",
        "in float64 is compared in float32), or why it does not take them, and the graph is what can be deployed.",
        "*Stays* is what no unit can be removed of, although it is",
        f"no input or output, and why. {cut} of {len(results)} can be cut; the largest error is {largest:.0e}.",
        "",
        "| network | units | MACs kept | error | own code | stays |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*text, *(row(ODDITIES[name], found) for name, found in results.items()), ""])


def main() -> int:
    """Check the networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GLOB", action="append")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results, failed = {}, 0
    for name, oddity in ODDITIES.items():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only or ["*"]):
            continue
        try:
            results[name] = check(oddity)
            print(row(oddity, results[name]), flush=True)
        except FxPruneError as problem:
            failed += 1
            print(f"{name}: {type(problem).__name__}: {problem}", flush=True)
    if options.markdown and not failed:
        write_text(options.markdown, markdown(results))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
