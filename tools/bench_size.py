"""Large graphs and large models: how seconds grow with layers, and what a model of 7 billion parameters takes.

    python tools/bench_size.py --out results/size.json --markdown docs/size.md
    python tools/bench_size.py --only chains | plan | stream

Each measurement runs in a process of its own, whose largest memory is recorded. ``chains`` are linear layers with
activations in a row. ``plan`` captures, groups and plans a Llama-shaped model of which nothing is in memory. ``stream``
writes a smaller one of the same shape to files with random weights, cuts these, and compares a layer at a time.
"""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools._pool import Limits, answering, run_one
from tools._records import changed, put_between, read

CHAINS = (100, 1000, 10000)
LLAMA = {"7B": (32, 4096, 11008, 32, 32000), "1.3B": (24, 2048, 5504, 16, 32000), "test": (2, 16, 24, 4, 40)}
"""Layers, width, inner width, heads, words."""
TRIES = 3  # of what takes less than a second; the fastest counts
LIMIT = 3600


def chain(layers: int) -> nn.Module:
    """Return so many linear layers with activations in between."""
    parts: list[nn.Module] = [nn.Linear(8, 8)]
    for _ in range(layers - 1):
        parts += [nn.ReLU(), nn.Linear(8, 8)]
    return nn.Sequential(*parts)


class _Block(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.behind = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        seen = self.before(x)
        q, k, v = (part(seen).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = (part * cos + torch.cat((-part.chunk(2, -1)[1], part.chunk(2, -1)[0]), -1) * sin for part in (q, k))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        seen = self.behind(x)
        return x + self.down(F.silu(self.gate(seen)) * self.up(seen))


class Llama(nn.Module):
    """A decoder of Llama's shape: rotary positions, RMS norms, gated inner layers."""

    def __init__(self, layers: int, width: int, inner: int, heads: int, words: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.blocks = nn.ModuleList(_Block(width, inner, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        half = torch.arange(0, width // heads, 2) / (width // heads)
        self.register_buffer("waves", 10000.0**-half, persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        angles = torch.arange(words.shape[1], device=words.device)[:, None] * self.get_buffer("waves")
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(words)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


# ---------------------------------------------------------------- measurements, each in a process of its own


def _seconds(work: Any) -> tuple[float, Any]:
    """Return the CPU seconds of the fastest of a few tries, and what the last gave."""
    best, found = float("inf"), None
    for _ in range(TRIES):
        start = time.process_time()
        found = work()
        best = min(best, time.process_time() - start)
        if best > 1:
            break
    return best, found


def measure_chain(layers: int) -> dict[str, Any]:
    """Capture a chain, find its groups, and plan."""
    from fxprune import find_groups, make_plan, trace

    start = time.process_time()
    traced = trace(chain(layers).eval(), torch.randn(2, 8))
    capture = time.process_time() - start

    def analyse() -> Any:
        groups = find_groups(traced)
        return groups, groups.families

    analysis, (groups, _) = _seconds(analyse)
    listing, _ = _seconds(lambda: find_groups(traced).groups)
    plan, found = _seconds(lambda: make_plan(traced, macs=0.5, groups=groups))
    assert found.after.macs <= 0.5 * found.before.macs
    return {"layers": layers, "capture": capture, "analysis": analysis, "listing": listing, "plan": plan}


def _empty(size: str) -> tuple[Any, Any, dict[str, Tensor], float]:
    from fxprune import trace
    from fxprune.deploy.streaming import empty_model

    start = time.process_time()
    model, buffers = empty_model(lambda: Llama(*LLAMA[size]))
    built = time.process_time() - start
    return model, trace(model, torch.zeros(1, 16, dtype=torch.long, device="meta")), buffers, built


def measure_plan(size: str) -> dict[str, Any]:
    """Capture, group and plan a model without data."""
    from fxprune import find_groups, make_plan, trace

    start = time.process_time()
    with torch.device("meta"):  # nothing is drawn, so that building takes no time
        model = Llama(*LLAMA[size]).eval()
    built = time.process_time()
    traced = trace(model, torch.zeros(1, 16, dtype=torch.long, device="meta"))
    captured = time.process_time()
    groups = find_groups(traced)
    grouped = time.process_time()
    plan = make_plan(traced, macs=0.5, importance="random", groups=groups)
    return {
        "size": size, "parameters": sum(p.numel() for p in model.parameters()), "build": built - start,
        "capture": captured - built, "groups": grouped - captured, "plan": time.process_time() - grouped,
        "kept": plan.after.macs / plan.before.macs,
    }  # fmt: skip


def measure_stream(size: str) -> dict[str, Any]:
    """Write a model of random weights to files, a block each; score, plan, cut and compare it."""
    from fxprune import make_plan
    from fxprune.deploy.streaming import Shards, cut_shards

    model, traced, buffers, _ = _empty(size)
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense"
        _write_random(model, dense)
        weights = Shards(dense, buffers)
        start = time.process_time()
        plan = make_plan(traced, macs=0.5, importance=weights.importance("l2"))
        scored, before = time.process_time(), _resident()
        peak = _Peak()
        found = cut_shards(traced, plan, weights, Path(folder) / "out")
        cut_peak = peak.stop()
        done = time.process_time()
        example = torch.arange(16)[None] % LLAMA[size][-1]
        checked = cut_shards(traced, plan, weights, Path(folder) / "out", example=example).verification
        assert checked is not None
        return {
            "size": size, "shard_bytes": max(file.stat().st_size for file in weights.files),
            "dense_bytes": sum(file.stat().st_size for file in weights.files), "out_bytes": found.bytes,
            "score_and_plan": scored - start, "cut": done - scored, "verify": time.process_time() - done,
            "resident_before": before, "resident_peak_of_cut": cut_peak, "error": checked.max_relative_error,
        }  # fmt: skip


def _write_random(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    parts: dict[str, dict[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        part = ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]
        scale = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 1.0
        drawn = torch.randn(tensor.shape, generator=generator) * scale
        parts.setdefault(part, {})[name] = drawn.to(torch.bfloat16)
        if len(parts) > 1:
            done = next(iter(parts))
            save_file(parts.pop(done), folder / f"{done}.safetensors")
    for part, tensors in parts.items():
        save_file(tensors, folder / f"{part}.safetensors")


def _resident() -> int:
    """Return the bytes of this process in memory that are not files: what is mapped can be dropped at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class _Peak:
    """Watches how much memory this process takes, from a thread."""

    def __init__(self) -> None:
        import threading

        self.most, self.going = 0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while self.going:
            self.most = max(self.most, _resident())
            time.sleep(0.005)

    def stop(self) -> int:
        """Return the largest value that was seen."""
        self.going = False
        self.thread.join()
        return self.most


MEASURES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "chains": measure_chain, "plan": measure_plan, "stream": measure_stream,
}  # fmt: skip
JOBS: list[tuple[str, Any]] = [*(("chains", n) for n in CHAINS), ("plan", "7B"), ("stream", "1.3B")]


def _apart(kind: str, what: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    worker = run_one(["-m", "tools.bench_size", "--job", kind, str(what)], Limits(seconds=LIMIT))
    if worker.why:
        raise RuntimeError(f"{kind} {what} failed: {worker.why}")
    found: dict[str, Any] = worker.answers[-1]
    return found


def page(found: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = ["| layers in a row | capture | analysis | listing of groups | plan |", "|---|---|---|---|---|"]
    chains = sorted(found.get("chains", {}).values(), key=lambda row: row["layers"])
    for row in chains:
        seconds = " | ".join(f"{row[key]:.3g} s" for key in ("capture", "analysis", "listing", "plan"))
        lines.append(f"| {row['layers']:,} | {seconds} |")
    by_layers = {row["layers"]: row for row in chains}
    if {1000, 10000} <= set(by_layers):
        ratios = " | ".join(
            f"{by_layers[10000][key] / by_layers[1000][key]:.1f}x" for key in ("capture", "analysis", "listing", "plan")
        )
        lines.append(f"| 10,000 to 1,000 | {ratios} |")
    for row in found.get("plan", {}).values():
        lines += [
            "", f"Llama-shaped, {row['parameters'] / 1e9:.2f} billion parameters, nothing of it in memory: capture "
            f"{row['capture']:.1f} s, groups {row['groups']:.1f} s, plan {row['plan']:.1f} s of CPU time, "
            f"{row['peak_bytes'] / 2**30:.1f} GiB at most, {row['kept']:.1%} of the MACs kept.",
        ]  # fmt: skip
    for row in found.get("stream", {}).values():
        extra = (row["resident_peak_of_cut"] - row["resident_before"]) / row["shard_bytes"]
        lines += [
            "", f"Llama-shaped, {row['dense_bytes'] / 1e9:.2f} GB in files of at most "
            f"{row['shard_bytes'] / 1e6:.0f} MB: scored and planned from them in {row['score_and_plan']:.0f} s, cut "
            f"in {row['cut']:.0f} s to {row['out_bytes'] / 1e9:.2f} GB, with {extra:.2f} of the largest file in memory "
            "at most beyond what the process had; compared with the masked reference in float64, a layer at a time, in "
            f"{row['verify']:.0f} s: {row['error']:.1e}.",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    """Measure what has no record, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--out", type=Path, default=Path("results/size.json"))
    parser.add_argument("--markdown", type=Path, help="page for the tables")
    parser.add_argument("--redo", action="store_true", help="also what has a record")
    parser.add_argument("--job", nargs=2, metavar=("KIND", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.job:
        kind, what = options.job
        with answering() as answer:
            record = MEASURES[kind](int(what) if what.isdigit() else what)
            answer({**record, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})
        return 0
    for kind, what in JOBS:
        if kind in options.only and (options.redo or str(what) not in read(options.out).get(kind, {})):
            record = _apart(kind, what)
            with changed(options.out) as found:
                found.setdefault(kind, {})[str(what)] = record
            print(json.dumps(record), flush=True)
    if options.markdown:
        put_between(options.markdown, "size", page(read(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
