"""The Python that does what a run of ``optimize`` does."""

from __future__ import annotations

import itertools
from typing import Any

from fxprune.capture.specs import DEFAULT_INPUT, parse_input, parts_of
from fxprune.cli.loading import parse_arguments
from fxprune.cli.recipes.flow import first_pruning, measures_layers, plan_source
from fxprune.cli.recipes.options import BUDGETS, CALIBRATE, FROM_DATA, LAYERS, PRUNE, TRAIN, Options, PassChoice
from fxprune.cli.recipes.script_training import calibration, data_lines, layer_batches, teacher_lines, training_lines
from fxprune.passes import PASSES


def write_script(options: Options) -> str:
    """Return a script; run where the command was run, it makes the same plan and the same files."""
    data = options.data is not None
    lines = [
        "import torch",
        "",
        "import fxprune",
        "from fxprune import passes",
        *(["from pathlib import Path", "from fxprune.cli.loading import load_weights"] if options.weights else []),
        *(data_lines(options) if data else []),
        *_model(options),
        "",
        *_inputs(options),
        "",
        "traced = fxprune.trace(model, example)",
        *_steps(options),
    ]
    if options.onnx:
        lines += [
            "",
            'fxprune.export_onnx(traced, "model.onnx")',
            'print(fxprune.check_parity(traced, "model.onnx"))',
        ]
    return "\n".join(lines) + "\n"


def _steps(options: Options) -> list[str]:
    """Return the lines of all steps; passes that follow each other run together."""
    lines: list[str] = []
    number, dense_at = 0, first_pruning(options.passes)
    taught = any("distillation" in step.options for step in options.passes if step.name == TRAIN)
    for key, members in itertools.groupby(enumerate(options.passes), lambda item: _group(item, dense_at)):
        steps = [step for _, step in members]
        lines += teacher_lines() if taught and number == dense_at else []
        if key[1] == TRAIN:
            lines += training_lines(options, number)
        else:
            lines += _passes(options, number, steps)
        number += len(steps)
    return lines


def _group(item: tuple[int, PassChoice], dense_at: int) -> tuple[int, str]:
    """Return what is the same for passes that run together: up to the dense model, and behind it."""
    number, step = item
    if step.name == TRAIN:
        return number, TRAIN
    return -1 - (number >= dense_at), "passes"


def _passes(options: Options, number: int, steps: list[PassChoice]) -> list[str]:
    at = [step.name for step in steps].index(PRUNE) if PRUNE in [step.name for step in steps] else None
    lines: list[str] = []
    if at is not None and plan_source(options.passes) == "budget":
        if steps[:at]:
            calls = ", ".join(_call(options, step) for step in steps[:at])
            lines.append(f"traced = fxprune.Pipeline([{calls}])(traced).traced")
        steps = steps[at:]
        lines += [
            "groups = fxprune.find_groups(traced)",
            f"plan = fxprune.make_plan(traced, {_plan(options)}, groups=groups)",
        ]
    if at is not None:
        lines += ['open("plan.json", "w").write(plan.to_json(indent=2))']
    return [
        *lines,
        "",
        "result = fxprune.Pipeline([",
        *(f"    {_call(options, step)}," for step in steps),
        "])(traced)",
        "print(result)",
        "traced = result.traced",
    ]


def _model(options: Options) -> list[str]:
    place, _, name = options.model.rpartition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in parse_arguments(list(options.model_args)).items())
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
    lines = [*source, "", f"torch.manual_seed({options.seed})", f"model = {made}({arguments})"]
    if options.weights:
        lines.append(f"load_weights(model, Path({str(options.weights)!r}))")
    return [*lines, "model.eval()"]


def _inputs(options: Options) -> list[str]:
    if not options.inputs and options.data is not None:
        made_like = "torch.randn((1, *splits.train[0][0].shape), generator=generator)"
        return [f"generator = torch.Generator().manual_seed({options.seed})", f"example = ({made_like},)"]
    given = [parts_of(text) for text in options.inputs or (DEFAULT_INPUT,)]
    made = [f"[{', '.join(map(_tensor, parts))}]" if isinstance(parts, list) else _tensor(parts) for parts in given]
    return [f"generator = torch.Generator().manual_seed({options.seed})", f"example = ({', '.join(made)},)"]


def _tensor(text: str) -> str:
    shape, dtype = parse_input(text)
    if dtype.is_floating_point:
        return f"torch.randn({shape}, generator=generator).to({dtype})"
    most = 2 if str(dtype) == "torch.bool" else 8
    return f"torch.randint(0, {most}, {shape}, generator=generator).to({dtype})"


def _plan(options: Options) -> str:
    values: dict[str, Any] = {name: getattr(options, name) for name in BUDGETS if getattr(options, name) is not None}
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


def _call(options: Options, step: PassChoice) -> str:
    if step.name == PRUNE:
        return "passes.PruneChannels(plan)"
    if step.name == CALIBRATE:
        return calibration(options, step)
    given = {key: value for key, value in step.options.items() if step.name != LAYERS or key not in FROM_DATA}
    given |= {"seed": step.options.get("seed", options.seed)} if step.name == LAYERS else {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    if step.name == LAYERS and measures_layers(step):
        arguments += f", batches={layer_batches(options, step)}"
    return f"passes.{PASSES[step.name].__name__}({arguments})"
