"""One model, one tool, one process: started by the pool, which bounds its time and memory."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
import warnings
from collections.abc import Callable

import torch

from tools._pool import answering
from tools._records import Record
from tools._zoo_models import catalog, input_shape
from tools._zoo_record import Recorder

TOOLS = {"fxprune": "tools._zoo_fxprune", "torch-pruning": "tools._zoo_torch_pruning"}


def _refusal(error: BaseException) -> bool:
    """A tool refuses when it raises an error of its own with a reason; anything else is a failure."""
    family = [base.__name__ for base in type(error).__mro__]
    return "FxPruneError" in family and "VerifyError" not in family


def main() -> int:
    """Run the worker; its last answer tells how it went, whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    warnings.simplefilter("ignore")
    with answering() as answer:
        run(options, answer)
    return 0


def run(options: argparse.Namespace, answer: Callable[[Record], None]) -> None:
    """Run the tool on the model, and tell how it goes."""
    recorder = Recorder(
        answer,
        tool=options.tool,
        model=options.model,
        category=catalog()[options.model],
        input=list(input_shape(options.model)),
        threads=options.threads,
        seed=options.seed,
        torch=torch.__version__,
    )
    try:
        importlib.import_module(TOOLS[options.tool]).run(options.model, options.seed, recorder)
        recorder.set(stage="done", phase="done")
    except Exception as error:
        where = recorder.values["stage"]
        text = " ".join(str(error).split())[:400]
        recorder.set(
            outcome="refused" if _refusal(error) else "failed",
            detail=f"{type(error).__name__} in {where}: {text}",
            traceback=traceback.format_exc()[-6000:],
            phase="done",
        )


if __name__ == "__main__":
    sys.exit(main())
