"""The lines of a script that have to do with data: loading them, training, calibrating."""

from __future__ import annotations

from typing import Any

from fxprune.cli.loading import parse_arguments
from fxprune.cli.recipes.flow import expanded
from fxprune.cli.recipes.options import TRAIN, Options, PassChoice
from fxprune.cli.recipes.training import CPU, METHODS, method_options, methods_of, pruning_method, training_recipe
from fxprune.cli.shared.training import TRAINING


def data_lines(options: Options) -> list[str]:
    """Return the lines that load the data, with the imports that trainings need besides."""
    given = {
        "fraction": options.fraction, "size": options.image_size, "channels": options.image_channels,
        "augment": options.augment, "arguments": parse_arguments(list(options.data_args)),
    }  # fmt: skip
    usual: dict[str, Any] = {"fraction": 1.0, "size": None, "channels": None, "augment": False, "arguments": {}}
    arguments = "".join(f", {key}={value!r}" for key, value in given.items() if value != usual[key])
    trains = any(step.name == TRAIN for step in options.passes)
    return [
        *(["import copy"] if _is_taught(options) else []),
        "from torch.utils.data import DataLoader",
        f"from fxprune.training import {', '.join(sorted(_names(options), key=str.lower))}",
        "",
        f"splits = load_data({options.data!r}{arguments})",
        *(_loader(options) if trains else []),
    ]


def teacher_lines() -> list[str]:
    """Return the line that keeps the dense model for distillation."""
    return ["teacher = copy.deepcopy(traced.module)"]


def training_lines(options: Options, number: int) -> list[str]:
    """Return the lines of a training."""
    step = options.passes[number]
    recipe = training_recipe(step.options, options.seed)
    chosen = {"seed": recipe.seed, **{key: step.options[key] for key in step.options if key not in (*METHODS, CPU)}}
    arguments = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
    methods = methods_of(step.options)
    earlier = sum(each.name == TRAIN for each in options.passes[:number])
    folder = f"{TRAINING}/{earlier + 1}-{'+'.join(methods) or 'plain'}"
    plan = pruning_method(step.options)
    gives_plan = plan is not None and METHODS[plan].gives == "plan"
    return [
        "",
        "trained = finetune(",
        f"    traced, loader(splits.train, {recipe.batch}, True), loader(splits.validation, {recipe.batch}, False),",
        f"    Recipe({arguments}),",
        f"    objectives=[{', '.join(_objective(options, number, name) for name in methods)}],",
        f"    out={folder!r}, cpu={bool(step.options.get(CPU, False))},",
        ")",
        "traced = trained.traced",
        *([f"plan = trained.finished[{methods.index(str(plan))}]"] if gives_plan else []),
    ]


def calibration(options: Options, step: PassChoice) -> str:
    """Return the call of calibrate-batchnorm."""
    batches = _batches_of(options, step)
    most = f", max_batches={step.options['max_batches']}" if "max_batches" in step.options else ""
    return f"passes.CalibrateBatchNorm({batches}{most})"


def layer_batches(options: Options, step: PassChoice) -> str:
    """Return the batches that remove-layers measures on."""
    return f"[batch for _, batch in zip(range({step.options.get('max_batches', 8)}), {_batches_of(options, step)})]"


def _batches_of(options: Options, step: PassChoice) -> str:
    generator = f"torch.Generator().manual_seed({options.seed})"
    return (
        f"DataLoader(splits.train, {step.options.get('batch', 64)}, shuffle=True, drop_last=True, "
        f"generator={generator}, num_workers={options.workers})"
    )


def _objective(options: Options, number: int, name: str) -> str:
    given: dict[str, Any] = method_options(name, options.passes[number].options[name])
    cls = METHODS[name].cls
    if name == "distillation":
        given = {"layers": "blocks" if expanded(options.passes, number) else "last", **given}
        return f"lambda model: {cls}(model, teacher, {_arguments(given)})"
    comma = ", " if given else ""
    return f"lambda model: {cls}.begin(traced.with_module(model){comma}{_arguments(given)})"


def _arguments(given: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in given.items())


def _is_taught(options: Options) -> bool:
    return any("distillation" in step.options for step in options.passes if step.name == TRAIN)


def _names(options: Options) -> set[str]:
    """Return what a script takes from fxprune.training."""
    names = {"load_data"}
    for step in options.passes:
        if step.name == TRAIN:
            names |= {"Recipe", "finetune", *(METHODS[name].cls for name in methods_of(step.options))}
            for name in methods_of(step.options):
                values = method_options(name, step.options[name]).values()
                names |= {type(value).__name__ for value in values if type(value).__module__.startswith("fxprune.")}
    return names


def _loader(options: Options) -> list[str]:
    return [
        "",
        "def loader(images, batch, shuffle):",
        f"    return DataLoader(images, batch_size=batch, shuffle=shuffle, num_workers={options.workers})",
        "",
    ]
