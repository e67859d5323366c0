"""What concerns the processes of a training: accelerate, exchange between them, and the progress bar of the first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from fxprune.errors import InputError
from fxprune.training.images import missing


def make_accelerator(precision: str | None, cpu: bool, unused: bool = False) -> Any:
    """Return accelerate's view of this process: its device, its rank, its precision.

    Args:
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None: what the launcher was told.
        cpu: Whether to keep off the GPU.
        unused: Whether the model may have parameters that a forward pass does not use. Several processes wait for the
            gradient of each unless they are told.

    Raises:
        EnvironmentProblem: accelerate is not installed.
        InputError: The launcher divides the model among processes, which is not supported; or precision and device do
            not go together.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs, DistributedType
    except ImportError as error:
        raise missing("accelerate", error) from error
    chosen = precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused)]
    try:
        accelerator = Accelerator(mixed_precision=chosen, cpu=cpu, kwargs_handlers=handlers)
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise InputError(f"accelerate cannot train with precision {chosen} here: {error}") from error
        AcceleratorState._reset_state()  # an earlier training in this process had another precision
        accelerator = Accelerator(mixed_precision=chosen, cpu=cpu, kwargs_handlers=handlers)
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise InputError(
            f"accelerate was launched for {accelerator.distributed_type.value}; fxprune trains with a whole model in "
            "each process: launch with --multi_gpu"
        )
    _check_launch(accelerator.num_processes)
    if accelerator.device.type == "cpu" and chosen == "fp16":
        raise InputError("precision fp16 needs a GPU; on the CPU give bf16 or no")
    return accelerator


def _check_launch(processes: int) -> None:
    """Refuse to train in one process where several were asked for; on the CPU accelerate starts one without a word."""
    asked = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ
    if asked and processes == 1 and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch --cpu starts a single process, whatever --num_processes says; for several on the CPU "
            "launch with --multi_gpu instead, and give fxprune --cpu (cpu=True), which keeps it off the GPU"
        )


def gather(accelerator: Any, value: Any) -> list[Any]:
    """Return what each process gives, in order of rank."""
    from accelerate.utils import gather_object

    return list(gather_object([value])) if accelerator.num_processes > 1 else [value]


def total(accelerator: Any, value: Tensor) -> Tensor:
    """Return the sum over all processes."""
    result: Tensor = accelerator.reduce(value, "sum") if accelerator.num_processes > 1 else value
    return result


@contextlib.contextmanager
def progress_bar(accelerator: Any) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function of (step, steps, what to say) that draws a bar where the main process has a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (accelerator.is_main_process and console.is_terminal):
        yield lambda step, steps, text: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None)
        yield lambda step, steps, text: bar.update(task, completed=step, total=steps, description=text)
