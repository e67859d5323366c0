"""How often the gate cries wolf, stays undecided, and misses: beside busy processes, on the cores that there are.

    python tools/bench_gate.py --out results/gate.json [--same 300] [--slower 100] [--busy 2] [--seconds 10]

A model of twenty convolutions against itself, and one of twenty-two (10 % more work) against that of twenty, both at
the default limit of 5 %; each trial loads the files anew. Beside them run busy processes, in turn one that only
computes and one that streams through memory. Trials of both kinds alternate, and those that the output file has are
not run again, so that a run can be taken up. At the end, ``fxprune gate`` is started as a command a few times. Overhead
is CPU time of everything else (reading and loading files, statistics; for the command also the start of Python) to CPU
time within the models: wall time would count the busy processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fxprune.deploy.gate import GateConfig, run_gate
from fxprune.deploy.machine import machine
from tools._records import put_between, read, write

LAYERS = {"same": 20, "slower": 22}
CHANNELS, SIZE = 48, 28

_LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    "  # ends with whoever started it
_BUSY = (
    f"{_LOOP}for i in range(1_000_000): i * i",
    f"import numpy\na = numpy.zeros(8_000_000)\nb = numpy.ones(8_000_000)\n{_LOOP}a += b",
)


def write_model(path: Path, layers: int) -> Path:
    """Write a chain of 3 x 3 convolutions with activations."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        weight = generator.standard_normal((CHANNELS, CHANNELS, 3, 3)) / np.sqrt(CHANNELS * 4.5)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        last = f"r{i}"
    shape: list[str | int | None] = ["batch", CHANNELS, SIZE, SIZE]
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", last))
    graph = helper.make_graph(nodes, "chain", [inputs], [outputs], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes busy."""
    one = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", _BUSY[i % len(_BUSY)]], env=one) for i in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def trial(kind: str, number: int, files: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Run the gate once."""
    given = {"seconds": options.seconds, "threads": options.threads, "seed": number}
    if options.min_seconds is not None:
        given["min_seconds"] = options.min_seconds
    settings = replace(GateConfig().settings, **given)
    start, cpu = time.perf_counter(), time.process_time()
    result = run_gate(files[kind], files["same"], GateConfig(settings))
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    latency = result.latency
    assert latency is not None
    return {
        "kind": kind,
        "number": number,
        "outcome": result.outcome,
        "ratio": latency.ratio,
        "low": latency.ratio_low,
        "high": latency.ratio_high,
        "wall_ratio": latency.wall.ratio,
        "control": latency.control.ratio,
        "control_holds": latency.control_holds,
        "rounds": latency.rounds,
        "seconds": spent,
        "inference_seconds": latency.inference_seconds,
        "cpu_seconds": cpu,
        "inference_cpu_seconds": latency.inference_cpu_seconds,
        "baseline_cpu_ms": latency.dense_ms,
        "load": latency.machine["load_after"],
    }


def command(files: dict[str, Path], seconds: float) -> dict[str, float]:
    """Start ``fxprune gate`` as a shell does."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "gate.json")
        program = [sys.executable, "-c", "from fxprune.cli.main import main; main()"]
        options = ["--baseline", str(files["same"]), "--json", str(report), "--seconds", str(seconds)]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [*program, "gate", str(files["same"]), *options],
            check=False,
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[1],
        )
        spent, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        latency = json.loads(report.read_text())["latency"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": spent, "cpu_seconds": cpu, "inference_cpu_seconds": latency["inference_cpu_seconds"]}


def overhead(runs: list[dict[str, Any]]) -> float:
    """Return the median share of CPU time beside the models."""
    return float(np.median([run["cpu_seconds"] / run["inference_cpu_seconds"] - 1 for run in runs]))


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that count."""
    found: dict[str, Any] = {}
    for kind, wrong in (("same", "fail"), ("slower", "pass")):
        trials = [one for one in results["trials"] if one["kind"] == kind]
        if not trials:
            continue
        outcomes = [one["outcome"] for one in trials]
        found[kind] = {
            "trials": len(trials),
            **{outcome: outcomes.count(outcome) / len(trials) for outcome in ("pass", "fail", "inconclusive")},
            "wrong": outcomes.count(wrong) / len(trials),
            "seconds_median": float(np.median([one["seconds"] for one in trials])),
            "seconds_most": max(one["seconds"] for one in trials),
            "ratio_p5_p95": [float(np.quantile([one["ratio"] for one in trials], q)) for q in (0.05, 0.95)],
            "overhead_median": overhead(trials),
        }
    commands = results["commands"]
    if commands:
        found["command"] = {"runs": len(commands), "overhead_median": overhead(commands)}
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the figures as a table."""
    found, where = results["summary"], results["machine"]
    same, slower = found["same"], found["slower"]
    rows = [
        ("a model against itself, limit 5 %", f"{same['trials']} trials", ""),
        ("false alarms", f"{same['wrong']:.1%}", "at most 1 %"),
        ("undecided", f"{same['inconclusive']:.1%}", "at most 10 %"),
        ("ratio, 5 % to 95 % of the trials", "{:.3f} to {:.3f}".format(*same["ratio_p5_p95"]), ""),
        ("seconds, median and most", f"{same['seconds_median']:.1f}, {same['seconds_most']:.1f}", "10"),
        ("22 convolutions against 20 (+10 %)", f"{slower['trials']} trials", ""),
        ("caught", f"{slower['fail']:.1%}", "at least 97 %"),
        ("ratio, 5 % to 95 % of the trials", "{:.3f} to {:.3f}".format(*slower["ratio_p5_p95"]), ""),
        ("seconds, median and most", f"{slower['seconds_median']:.1f}, {slower['seconds_most']:.1f}", "10"),
        ("CPU time beside the models, of theirs", f"{same['overhead_median']:.0%}", "at most 25 %"),
    ]
    if "command" in found:
        text = f"the same for the whole command, {found['command']['runs']} runs"
        rows.append((text, f"{found['command']['overhead_median']:.0%}", ""))
    loads = [one["load"] for one in results["trials"]]
    lines = [f"| {what} | {value} | {target} |" for what, value, target in rows]
    pace = "Measuring stopped as soon as it was decided (`min_seconds = 0`)." if results["min_seconds"] == 0 else ""
    single = np.median([one["baseline_cpu_ms"] for one in results["trials"]])
    where_text = (
        f"{where['processor']}, {where['cores']} cores, onnxruntime {where['onnxruntime']}, {results['threads']} "
        f"thread(s), beside {results['busy']} busy processes; load {min(loads):.1f} to {max(loads):.1f}. "
        f"One inference takes {single:.1f} ms. {pace}"
    )
    where_text = where_text.strip()
    return "\n".join(["| | measured | asked for |", "|---|---|---|", *lines, "", where_text])


def main() -> int:
    """Run what is missing and write after each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--same", type=int, default=300)
    parser.add_argument("--slower", type=int, default=100)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--command", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-seconds", type=float, help="the gate's own if left out")
    parser.add_argument("--markdown", type=Path, help="page with markers for the table")
    options = parser.parse_args()
    results: dict[str, Any] = {"schema": 1, "busy": options.busy, "limit_seconds": options.seconds}
    results |= {"threads": options.threads, "min_seconds": options.min_seconds}
    results |= {"machine": machine(), "trials": [], "commands": []}
    results |= {key: value for key, value in read(options.out).items() if key != "summary"}
    done = {(one["kind"], one["number"]) for one in results["trials"]}
    wanted = sorted(  # spread evenly, so that a part of a run has its part of both
        [(i / options.same, "same", i) for i in range(options.same)]
        + [(i / options.slower, "slower", i) for i in range(options.slower)]
    )
    with tempfile.TemporaryDirectory() as folder, busy(options.busy):
        files = {kind: write_model(Path(folder, f"{kind}.onnx"), layers) for kind, layers in LAYERS.items()}
        for _, kind, number in wanted:
            if (kind, number) not in done:
                results["trials"].append(trial(kind, number, files, options))
                _write(options.out, results)
        while len(results["commands"]) < options.command:
            results["commands"].append(command(files, options.seconds))
            _write(options.out, results)
    _write(options.out, results)
    print(json.dumps(results["summary"], indent=2))
    if options.markdown:
        put_between(options.markdown, "gate", markdown(results))
    return 0


def _write(path: Path, results: dict[str, Any]) -> None:
    results["summary"] = summary(results)
    write(path, results)


if __name__ == "__main__":
    sys.exit(main())
