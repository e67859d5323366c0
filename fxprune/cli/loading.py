"""Models, weights and inputs as they are named on the command line."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.shared.console import muted
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.capture import Traced


def parse_fraction(name: str, value: float | None) -> float | None:
    """Return a budget, which must be a share in (0, 1]."""
    if value is not None and not 0 < value <= 1:
        raise InputError(
            f"--{name} {value} is no share to keep; give a number above 0 and at most 1, for example --{name} 0.5"
        )
    return value


def round_to(text: str) -> int | str:
    """Return what widths are to be multiples of, as it was given: "auto" or a number."""
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--round-to {text!r} is neither 'auto' nor a whole number from 1 up")
    return int(text)


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """Return keyword arguments of the model from ``name=value``; values are Python literals, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--model-arg {pair!r} is not of the form name=value")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def load_model(spec: str, arguments: list[str], weights: Path | None, seed: int) -> Any:
    """Build the model that ``package.module:callable`` or ``file.py:callable`` names, in eval mode, with its weights.

    Raises:
        InputError: The specification, the module, the callable or the weights cannot be used.
    """
    model = build_model(find_callable(spec), spec, parse_arguments(arguments), seed)
    if weights is not None:
        load_weights(model, weights)
    return model


def find_callable(spec: str, what: str = "model", example: str = "torchvision.models:resnet18") -> Any:
    """Return what ``package.module:callable`` or ``file.py:callable`` names.

    Raises:
        InputError: The specification or the module cannot be used.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise InputError(
            f"{spec!r} names no {what}; write package.module:callable or path/file.py:callable, as in {example}"
        )
    found: Any = _import(place, spec)
    for atom in name.split("."):
        if not hasattr(found, atom):
            raise InputError(f"{place} has no attribute {atom!r}; it is where {spec!r} was looked for")
        found = getattr(found, atom)
    return found


def build_model(factory: Any, spec: str, arguments: dict[str, Any], seed: int) -> Any:
    """Return the model that a callable gives, in eval mode.

    Raises:
        InputError: It gives none.
    """
    import torch

    torch.manual_seed(seed)
    with warnings.catch_warnings():  # what will change in the model's library is no concern of whoever prunes it
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        return _build(factory, spec, arguments).eval()


def _import(place: str, spec: str) -> Any:
    try:
        if place.endswith(".py"):
            return _import_file(Path(place))
        sys.path.insert(0, "")  # a module beside the user counts, as with ``python -m``
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{spec!r}: there is no module {error.name!r} here; install it, or check the spelling"
        ) from error
    except InputError:
        raise
    except Exception as error:  # whatever a user's module does at import is reported, not swallowed
        hint = "; run `fxprune doctor`, which explains this case" if "torchvision::nms" in str(error) else ""
        raise InputError(f"importing {place} for {spec!r} failed: {type(error).__name__}: {error}{hint}") from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    loader = importlib.util.spec_from_file_location(path.stem, path)
    assert loader is not None
    assert loader.loader is not None  # the name ends in .py, which always has a loader
    module = importlib.util.module_from_spec(loader)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    loader.loader.exec_module(module)
    return module


def _build(factory: Any, spec: str, arguments: dict[str, Any]) -> Any:
    from torch import nn

    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise InputError(
            f"{spec!r} is a {type(factory).__name__}; it must be a torch.nn.Module or a callable that returns one"
        )
    try:
        model = factory(**arguments)
    except Exception as error:
        raise InputError(
            f"calling {spec} with {arguments or 'no arguments'} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def load_weights(model: Any, path: Path) -> None:
    """Load a safetensors file, plain or compact, or a checkpoint of tensors (never a pickle of code) into a model.

    Raises:
        InputError: The file is missing, damaged, of another kind than its name says, or does not fit the model.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:5]]
        raise InputError(
            f"the weights in {path} do not fit {type(model).__name__}: {' '.join(lines) or error}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fxprune.deploy.compact import is_compact, load_compact

    try:
        return load_compact(path) if is_compact(path) else load_file(path)
    except (SafetensorError, OSError) as error:
        head = path.read_bytes()[:2]
        kind = (
            "it looks like a torch checkpoint: rename it to .pt"
            if head in (b"PK", b"\x80\x02")
            else "it is damaged or cut short"
        )
        raise InputError(f"{path} is no readable safetensors file ({error}); {kind}") from error


def _read_checkpoint(path: Path) -> dict[str, Any]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything
        first = str(error).splitlines()[0] if str(error) else ""
        raise InputError(
            f"{path} cannot be read as a checkpoint of tensors: {type(error).__name__}: {first[:200]}; it is damaged, "
            "cut short, or holds pickled code, which fxprune does not run: save model.state_dict() instead"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state_dict; save model.state_dict()")
    return state


def capture(model: Any, inputs: list[str], seed: int) -> Traced:
    """Trace a model on random inputs."""
    from fxprune.capture import trace
    from fxprune.capture.specs import example_inputs

    tensors = example_inputs(inputs, seed)
    with muted():
        return trace(model, tensors)
