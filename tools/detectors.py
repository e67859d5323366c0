"""Prune torchvision's detectors to half their MACs, by region, and compare their boxes with the masked originals'.

    python tools/detectors.py --out results/detectors.json [--models 'ssd*'] [--markdown docs/detectors.md]

Weights are random and seeded, each model runs in a process of its own, bounded in time, on two images of unlike sizes.
A detector is *exact* when the eager pruned model returns what the eager original returns with the removed channels
masked in all its regions: the same number of boxes, labels, scores, masks and keypoints, in float64 and within 1e-9 of
the largest value of each. It also has to return finite losses and gradients in training mode. A model that has a record
in the output file is skipped, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from fxprune.distance import distance, relative, top
from tools._detector_models import NAMES, build, images, targets
from tools._pool import Limits, answering, record_of
from tools._records import Record, changed, put_between_marks, read

TOLERANCE = 1e-9
CONTROL = 1.001  # by which a weight is multiplied to see that the comparison notices
PARITY_TOLERANCE = 1e-4
Detections = list[dict[str, Tensor]]
MARK = "<!-- table -->"  # before and behind the table


def work(name: str) -> Record:
    """Prune one detector, and return how it went."""
    import fxprune  # before the clock starts
    from fxprune import passes

    model = build(name)
    record: Record = {"model": name, "parameters": sum(p.numel() for p in model.parameters()), "seconds": {}}
    try:
        with _stage(record, "capture"):
            traced = fxprune.trace(model, (images(),))
        assert traced.regions is not None, "it was captured whole"
        record |= {"regions": traced.regions.paths, "notes": list(traced.notes), "batch": traced.batches()}
        with _stage(record, "groups"):
            groups = fxprune.find_groups(traced)
        with _stage(record, "plan"):
            plan = fxprune.make_plan(traced, macs=0.5, groups=groups)
        with _stage(record, "prune"):
            result = fxprune.Pipeline([passes.PruneChannels(plan)])(traced)
        counts = [fxprune.count(each).macs for each in (traced, result.traced)]
        record |= {"gmacs": counts[0] / 1e9, "macs": counts[1] / counts[0], "plan_notes": list(plan.notes)}
        pruned = copy.deepcopy(model)
        with _stage(record, "apply"):
            record["eager_error"] = result.apply_to(pruned).max_relative_error
        with _stage(record, "detect"):
            record |= _compare(model, pruned, traced, plan, groups)
        record["outcome"] = "exact" if record["error"] <= TOLERANCE else "wrong"
        with _stage(record, "train"):
            record |= _train(pruned)
        with _stage(record, "export"):
            record["onnx"] = _export(result.traced)
    except Exception as problem:  # whatever is raised is the result
        record.setdefault("outcome", f"failed at {record['stage']}")
        record["detail"] = f"{record['stage']}: {type(problem).__name__}: {' '.join(str(problem).split())[:600]}"
    record["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


@contextmanager
def _stage(record: Record, name: str) -> Iterator[None]:
    record["stage"], start = name, time.perf_counter()
    yield
    record["seconds"][name] = round(time.perf_counter() - start, 2)


@torch.no_grad()
def _compare(model: nn.Module, pruned: nn.Module, traced: Any, plan: Any, groups: Any) -> Record:
    """Run the original dense and masked, and the pruned one, in float64 and in their own code around the regions."""
    from fxprune.capture.regions import hosted
    from fxprune.surgery.masked_regions import masked_regions

    pictures = [picture.double() for picture in images()]
    original, pruned = copy.deepcopy(model).double(), copy.deepcopy(pruned).double()
    dense = original(pictures)
    with hosted(original, traced, masked_regions(traced, plan, groups)):
        expected = original(pictures)
    found = pruned(pictures)
    first = next(iter(pruned.parameters()))
    with torch.no_grad():
        first.mul_(CONTROL)
    changed = pruned(pictures)
    scores = torch.cat([one["scores"] for one in expected]).sort().values
    return {
        "error": _difference(found, expected),
        "away_from_dense": _difference(dense, expected),
        "control": _difference(changed, expected),
        "detections": [len(one["scores"]) for one in expected],
        "with_area": sum(int((one["boxes"][:, 2:] > one["boxes"][:, :2]).all(1).sum()) for one in expected),
        "outputs": sorted(expected[0]),
        "scores": [float(scores[0]), float(scores[-1])] if len(scores) else [],
        "different_scores": len(set(scores.tolist())),
        "smallest_gap": float(scores.diff().min()) if len(scores) > 1 else 0.0,
    }


def _difference(found: Detections, expected: Detections) -> float:
    """Return the largest difference of any output, relative to its largest value.

    It is infinite for another number of detections, another label and NaN.
    """
    errors = [0.0]
    for one, other in zip(found, expected, strict=True):
        if one.keys() != other.keys():
            return float("inf")
        errors += [relative(distance(one[name], value), top(value) or 1.0) for name, value in other.items()]
    return max(errors)


def _train(model: nn.Module) -> Record:
    """Take the gradients of the losses in training mode."""
    pictures = images()
    losses = model.train()(pictures, targets(pictures))
    total = sum(losses.values())
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = bool(torch.isfinite(total)) and all(bool(torch.isfinite(g).all()) for g in gradients)
    if not finite:
        raise ArithmeticError(
            f"losses or gradients are not finite: { {k: float(v.detach()) for k, v in losses.items()} }"
        )
    moved = sum(bool(g.any()) for g in gradients)
    return {
        "losses": {key: float(value.detach()) for key, value in losses.items()},
        "gradients": [moved, len(gradients)],
    }


def _export(traced: Any) -> dict[str, float]:
    """Export every region and return how far each file is off."""
    from fxprune.deploy.regions import export_regions

    with tempfile.TemporaryDirectory() as folder:
        return {file.call.name: file.check().max_relative_error for file in export_regions(traced, folder)}


def bounded(name: str, timeout: float, memory: float) -> Record:
    """Run one model in a process of its own."""
    words = ["-m", "tools.detectors", "--worker", name, "--memory", str(memory)]
    return record_of(words, Limits(seconds=timeout), model=name)


_HEAD = (
    "| detector | regions | outcome | GMACs | MACs kept | boxes (with an area, different scores) | float64 error "
    "| to the dense one | control | losses | ONNX error | capture, groups, plan, prune: s | MiB | note |"
)


def markdown(records: dict[str, Record]) -> str:
    """Return the table."""
    lines = [_HEAD, "|---|---|" + "---|" * 12]
    for name, r in records.items():
        exact = "error" in r
        cells = [
            name,
            ", ".join(r.get("regions", [])),
            r["outcome"],
            f"{r['gmacs']:.1f}" if "gmacs" in r else "",
            f"{r['macs']:.1%}" if "macs" in r else "",
            f"{sum(r['detections'])} ({r['with_area']}, {r['different_scores']})" if exact else "",
            f"{r['error']:.0e}" if exact else "",
            f"{r['away_from_dense']:.0e}" if exact else "",
            f"{r['control']:.0e}" if "control" in r else "",
            "finite" if "losses" in r else "",
            f"{max(r['onnx'].values()):.0e}" if "onnx" in r else "",
            ", ".join(f"{r['seconds'][key]:.1f}" for key in ("capture", "groups", "plan", "prune"))
            if "prune" in r.get("seconds", {})
            else "",
            str(r.get("peak_rss_mib", "")),
            "; ".join(filter(None, [r.get("detail", ""), *r.get("notes", [])[1:], *r.get("plan_notes", [])]))[:300],
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="GLOB", action="append")
    parser.add_argument("--out", type=Path, default=Path("results/detectors.json"))
    parser.add_argument("--markdown", type=Path, help="write the table between the marks of this file")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds per model")
    parser.add_argument("--memory", type=float, default=14.0, help="GiB of address space per model")
    parser.add_argument("--redo", action="store_true", help="run models again that have a record")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run what has no record yet, and print the table."""
    options = arguments()
    warnings.simplefilter("ignore")
    if options.worker:
        limit = int(options.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        torch.set_num_threads(1)
        with answering() as answer:
            answer(work(options.worker))
        return 0
    for name in NAMES:
        chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.models or ["*"])
        if not chosen or (name in read(options.out) and not options.redo):
            continue
        record = bounded(name, options.timeout, options.memory)
        with changed(options.out) as records:
            records[name] = record
        print(f"{name:38s} {record['outcome']:20s} {record.get('detail', '')[:300]}", flush=True)
    found = read(options.out)
    records = {name: found[name] for name in NAMES if name in found}
    if options.markdown:
        put_between_marks(options.markdown, f"{MARK}\n", MARK, markdown(records))
    print(markdown(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
