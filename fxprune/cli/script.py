"""The Python that does what a run of ``optimize`` does."""

from __future__ import annotations

from typing import Any

from fxprune.capture.specs import DEFAULT_INPUT, parse_input
from fxprune.cli.loading import parse_arguments
from fxprune.cli.options import PRUNE, Options, PassChoice
from fxprune.passes import PASSES

_BUDGETS = ("macs", "params", "channels", "latency")


def write_script(options: Options) -> str:
    """Return a script; run where the command was run, it makes the same plan and the same files."""
    before, after = options.before_and_after()
    lines = [
        "import torch",
        "",
        "import fxprune",
        "from fxprune import passes",
        *_model(options),
        "",
        *_inputs(options),
        "",
        "traced = fxprune.trace(model, example)",
        *([f"traced = fxprune.Pipeline([{_made(before)}])(traced).traced"] if before else []),
        "groups = fxprune.find_groups(traced)",
        f"plan = fxprune.make_plan(traced, {_plan(options)}, groups=groups)",
        'open("plan.json", "w").write(plan.to_json(indent=2))',
        "",
        "result = fxprune.Pipeline([",
        "    passes.PruneChannels(plan),",
        *(f"    {_call(choice)}," for choice in after),
        "])(traced)",
        "print(result)",
    ]
    if options.onnx:
        lines += [
            "",
            'fxprune.export_onnx(result.traced, "model.onnx")',
            'print(fxprune.check_parity(result.traced, "model.onnx"))',
        ]
    return "\n".join(lines) + "\n"


def _model(options: Options) -> list[str]:
    place, _, name = options.model.rpartition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in parse_arguments(list(options.model_args)).items())
    lines = ["from fxprune.cli.loading import load_weights"] if options.weights else []
    if place.endswith(".py"):
        source = [
            "import importlib.util",
            f'spec = importlib.util.spec_from_file_location("model", {place!r})',
            "module = importlib.util.module_from_spec(spec)",
            "spec.loader.exec_module(module)",
        ]
        made = f"module.{name}"
    else:
        source = [f"import {place}"]
        made = f"{place}.{name}"
    lines += [*source, "", f"torch.manual_seed({options.seed})", f"model = {made}({arguments})"]
    if options.weights:
        lines.append(f"load_weights(model, {str(options.weights)!r})")
    return [*lines, "model.eval()"]


def _inputs(options: Options) -> list[str]:
    lines = [f"generator = torch.Generator().manual_seed({options.seed})"]
    made = []
    for text in options.inputs or (DEFAULT_INPUT,):
        shape, dtype = parse_input(text)
        made.append(
            f"torch.randn({shape}, generator=generator).to({dtype})"
            if dtype.is_floating_point
            else f"torch.randint(0, {2 if str(dtype) == 'torch.bool' else 8}, {shape}, generator=generator).to({dtype})"
        )
    return [*lines, f"example = ({', '.join(made)},)"]


def _plan(options: Options) -> str:
    values: dict[str, Any] = {name: getattr(options, name) for name in _BUDGETS if getattr(options, name) is not None}
    values |= {"importance": options.importance}
    if options.allocation is not None:
        values["allocation"] = options.allocation
    values["round_to"] = int(options.round_to) if options.round_to.isdigit() else options.round_to
    if options.protect:
        values["protect"] = list(options.protect)
    if options.compensate:
        values["compensate"] = options.compensate
    values |= {"runtime": options.runtime, "threads": options.threads, "seed": options.seed}
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def _made(choices: tuple[PassChoice, ...]) -> str:
    return ", ".join(_call(choice) for choice in choices)


def _call(choice: PassChoice) -> str:
    assert choice.name != PRUNE
    arguments = ", ".join(f"{key}={value!r}" for key, value in choice.options.items())
    return f"passes.{PASSES[choice.name].__name__}({arguments})"
