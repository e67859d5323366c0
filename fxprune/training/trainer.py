"""One training: what is trained, with what, where it stands, and how it goes on from a checkpoint."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

from fxprune.errors import InputError, TrainingError
from fxprune.training.batches import Batches, as_loader
from fxprune.training.checkpoint import first_difference, load_checkpoint, save_checkpoint, save_weights
from fxprune.training.data import check_classes
from fxprune.training.evaluate import Tally, Task, run_model, size_of, split_batch, tally
from fxprune.training.history import Row, empty_figure, write_curves, write_metrics
from fxprune.training.objectives import ObjectiveLike
from fxprune.training.processes import gather, make_accelerator, total
from fxprune.training.randomness import capture_states, derived_seed, restore_states, seed_all
from fxprune.training.recipe import Recipe
from fxprune.training.synced import synced_batchnorm

CHECKPOINT, METRICS, CURVES, WEIGHTS = "checkpoint.safetensors", "metrics.jsonl", "curves.png", "model.safetensors"
SMALLEST_SCALE = 2.0**-10  # of losses in fp16; a scaler starts at 2**16 and halves it at each step that it skips
DRAW_EVERY = 30.0  # seconds between pictures while training goes on

MakeObjective = Callable[[nn.Module], ObjectiveLike]
"""From the model that will be trained to an objective of its training."""

Show = Callable[[int, int, str], None]
"""Draws progress: the steps that are done, all steps, and what to say."""


@dataclass
class _Progress:
    """Where a training stands, as plain data."""

    epoch: int = 0
    position: int = 0  # steps of this epoch that are done
    step: int = 0
    tally: dict[str, float] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    score: list[float] | None = None
    best: int = -1  # index in the history
    waited: int = 0


class Training:
    """One run: what is trained, with what, and where it stands."""

    def __init__(self, source: nn.Module, recipe: Recipe, task: Task, cpu: bool) -> None:
        self.recipe, self.task, self.progress = recipe, task, _Progress()
        self.accelerator = make_accelerator(recipe.precision, cpu, _may_rest(source))
        self.modes = [layer.training for layer in source.modules()]
        self.home = next((tensor.device for tensor in source.parameters()), torch.device("cpu"))
        self.module: nn.Module = copy.deepcopy(source).to(self.accelerator.device)
        self.attributes = set(vars(self.module))
        self.objectives: list[ObjectiveLike] = []
        self.finished: tuple[Any, ...] = ()
        self.best: dict[str, Tensor] | None = None
        self.folder: Path | None = None
        self.drawn = time.perf_counter()

    # ---------------------------------------------------------------- what it takes

    def take_data(self, train: Any, validation: Any) -> None:
        """Take loaders or datasets."""
        accelerator, recipe = self.accelerator, self.recipe
        many = {"processes": accelerator.num_processes, "rank": accelerator.process_index}
        loader = as_loader(train, recipe.batch, True, "training")
        if self.task.loss is None:
            check_classes(loader.dataset)
        self.batches = Batches(loader, recipe.seed, recipe.accumulate, **many)
        self.epoch_steps = len(self.batches.steps(0))
        self.validation = None
        if validation is not None:
            self.validation = Batches(as_loader(validation, recipe.batch, False, "validation"), recipe.seed, **many)

    def take_objectives(self, make: Sequence[MakeObjective], stack: contextlib.ExitStack) -> None:
        """Make objectives and the optimiser, and hand both to accelerate."""
        seed_all(self.recipe.seed)  # what objectives start with is the same in all processes
        for each in make:
            if isinstance(each, ObjectiveLike):
                raise InputError(
                    f"objectives are made for the copy that is trained: give a function of it instead of a "
                    f"{type(each).__name__}, as in lambda model: {type(each).__name__}(model, ...)"
                )
            objective = each(self.module)
            self.objectives.append(objective)
            stack.callback(getattr(objective, "close", _nothing))  # also where training fails
            getattr(objective, "expect", _nothing)(self.recipe.epochs * self.epoch_steps)
        # Now that objectives have made of the model what is trained.
        self.average = _average_of(self.module, self.recipe.ema) if self.recipe.ema else None
        self.keeps_last = any(getattr(objective, "keeps_last", False) for objective in self.objectives)
        self.extra = [weight for objective in self.objectives for weight in getattr(objective, "parameters", tuple)()]
        if self.accelerator.num_processes > 1:
            stack.enter_context(synced_batchnorm(self.module))
        optimizer = self.recipe.make_optimizer(self.module, self.extra)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        stack.callback(self.accelerator.free_memory)
        seed_all(derived_seed(self.recipe.seed, self.accelerator.process_index))

    def take_folder(self, folder: Path | None, resume: bool) -> None:
        """Go on from the folder's checkpoint if there is one."""
        if folder is None:
            return
        self.folder, self.about = folder, self._describe()
        empty_figure()  # else a missing package would show only after the first epoch
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror or error}; give another") from error
        self.accelerator.wait_for_everyone()
        if resume and (folder / CHECKPOINT).exists():
            self._restore(folder / CHECKPOINT)

    # ---------------------------------------------------------------- training

    def run(self, show: Show, on_epoch: Callable[[Row], None] | None) -> None:
        """Train until the last epoch, or until patience is at its end."""
        while not self._is_over():
            self._train_epoch(show)
            row = self._end_epoch()
            if on_epoch is not None and self.accelerator.is_main_process:
                on_epoch(row)

    def _is_over(self) -> bool:
        progress, patience = self.progress, self.recipe.patience
        return progress.epoch >= self.recipe.epochs or bool(patience and progress.waited >= patience)

    def _train_epoch(self, show: Show) -> None:
        progress, recipe, self.started = self.progress, self.recipe, time.perf_counter()
        steps = self.batches.steps(progress.epoch)[progress.position :]
        batches = self.batches.load([fetch for step in steps for fetch in step])
        counts = Tally(**progress.tally)
        self.wrapped.train()
        for step in steps:
            self._step(batches, [len(fetch.indices) for fetch in step], counts)
            progress.step, progress.position, progress.tally = progress.step + 1, progress.position + 1, asdict(counts)
            show(progress.step, recipe.epochs * self.epoch_steps, _status(progress.epoch, recipe.epochs, counts))
            if recipe.save_every and progress.step % recipe.save_every == 0:
                self._save()

    def _step(self, batches: Iterator[Any], sizes: list[int], counts: Tally) -> None:
        """Take one step of the optimiser over the next batches, which hold so many samples."""
        progress, accelerator, optimizer = self.progress, self.accelerator, self.optimizer
        rate = self.recipe.rate(progress.step, self.recipe.epochs * self.epoch_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = torch.zeros((), device=accelerator.device)
        for index, size in enumerate(sizes, 1):
            is_last = index == len(sizes)  # only then are gradients exchanged
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.wrapped):
                part = self._forward(next(batches), counts) * (size / sum(sizes))
                accelerator.backward(part)
            loss += part.detach()
        if not math.isfinite(value := float(total(accelerator, loss))):
            raise self._failure(f"the loss is {value}")
        self._update()

    def _forward(self, batch: Any, counts: Tally) -> Tensor:
        args, kwargs, target = split_batch(batch, self.accelerator.device)
        with self.accelerator.autocast():
            output = run_model(self.wrapped, args, kwargs)
            loss = self.task.measure(output, target, smooth=True)
            extra = torch.zeros_like(loss)
            for objective in self.objectives:
                extra = extra + objective.extra_loss()
        if not (loss.requires_grad or extra.requires_grad):
            raise InputError(
                "the loss does not depend on any parameter that is trained (requires_grad), so there is nothing to "
                "learn; train those that the model computes with, and detach no output"
            )
        counts.add(loss.item(), size_of(args, kwargs), self.task.correct(output, target), extra.item())
        return loss + extra

    def _update(self) -> None:
        """Move the weights by the gradients, which are checked and clipped after objectives have changed them."""
        accelerator = self.accelerator
        accelerator.unscale_gradients(self.optimizer)
        for weight in self.extra:  # those of the model are averaged over processes already
            if weight.grad is not None:
                weight.grad = accelerator.reduce(weight.grad, "mean")
        for objective in self.objectives:
            objective.after_backward()
        weights = [
            weight for group in self.optimizer.param_groups for weight in group["params"] if weight.requires_grad
        ]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler skips the step and scales less
            raise self._failure(f"the norm of the gradients is {float(norm)}")
        if self.recipe.clip is not None:
            nn.utils.clip_grads_with_norm_(weights, self.recipe.clip, norm)
        self.optimizer.step()
        skipped = accelerator.optimizer_step_was_skipped
        if skipped and (scale := accelerator.scaler.get_scale()) < SMALLEST_SCALE:  # else every one would be, silently
            raise self._failure(f"gradients are not finite even where losses are scaled by {scale:.1e}")
        for objective in self.objectives:
            objective.after_step()  # also then: a schedule counts the steps that it was told to expect
        if self.average is not None and not skipped:
            self.average.update_parameters(self.module)

    def _failure(self, what: str) -> TrainingError:
        kept = "nothing was saved yet"
        if self.folder is not None and (self.folder / CHECKPOINT).exists():
            kept = f"the last good checkpoint is {self.folder / CHECKPOINT}"
        return TrainingError(
            f"{what} at step {self.progress.step} (epoch {self.progress.epoch}), so training stops; {kept}. Give a "
            "smaller learning rate, a limit on the gradients (clip), or data without such values"
        )

    # ---------------------------------------------------------------- ends of epochs

    def _end_epoch(self) -> Row:
        """Evaluate, note the figures, keep the weights if they are the best, and save."""
        progress, counts = self.progress, _together(self.accelerator, Tally(**self.progress.tally))
        row: Row = {"epoch": progress.epoch, "step": progress.step, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {f"train_{name}": value for name, value in counts.means().items()}
        row["extra_loss"] = counts.extra / max(counts.samples, 1)
        score = [0.0, 0.0]
        if self.validation is not None:
            model = self.module if self.average is None else self.average.module
            found = tally(model, self.validation, self.task, self.accelerator.device, self.accelerator.autocast)
            means = _together(self.accelerator, found).means()
            if not math.isfinite(means["loss"]):
                raise self._failure(f"the validation loss is {means['loss']}")
            row |= {f"validation_{name}": value for name, value in means.items()}
            score = [means.get("accuracy", 0.0), -means["loss"]]
        row["seconds"] = time.perf_counter() - self.started
        progress.history.append(row)
        if self.keeps_last or self.validation is None or progress.score is None or score > progress.score:
            progress.score, progress.best, progress.waited = score, len(progress.history) - 1, 0
            self.best = {name: value.detach().cpu().clone() for name, value in self._weights().items()}
        else:
            progress.waited += 1
        progress.epoch, progress.position, progress.tally = progress.epoch + 1, 0, {}
        self._save()
        return row

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights that are evaluated and returned: the model's own, or their running mean."""
        model: nn.Module = self.module if self.average is None else self.average.module
        return model.state_dict()

    def finish(self) -> nn.Module:
        """Return the model with its best weights, and without anything of the training."""
        assert self.best is not None  # the first epoch sets it
        module = self.module
        for name in set(vars(module)) - self.attributes:  # accelerate's: a forward pass under autocast, and marks
            delattr(module, name)
        module.load_state_dict(self.best)
        self.finished = tuple(objective.finish() for objective in self.objectives)
        module.to(self.home)
        for layer, mode in zip(module.modules(), self.modes, strict=False):
            layer.training = mode
        if self.folder is not None and self.accelerator.is_main_process:
            save_weights(self.folder / WEIGHTS, module.state_dict())
            write_curves(self.folder / CURVES, self.progress.history)
        self.accelerator.wait_for_everyone()
        return module

    # ---------------------------------------------------------------- checkpoints

    def _describe(self) -> dict[str, Any]:
        """Return what must be the same for a training to go on."""
        return {
            "processes": self.accelerator.num_processes,
            "model": {name: [str(value.dtype), *value.shape] for name, value in self.module.state_dict().items()},
            "recipe": self.recipe.describe(),
            "training data": {"order": self.batches.checksum(0), "steps per epoch": self.epoch_steps},
            "validation data": None if self.validation is None else self.validation.checksum(0),
            "objectives": [type(objective).__name__ for objective in self.objectives],
        }

    def _save(self) -> None:
        if self.folder is None:
            return
        state = self.module.state_dict()
        if any(value.is_floating_point() and not value.isfinite().all() for value in state.values()):
            raise self._failure("a weight is not finite")
        processes = gather(self.accelerator, {"random": capture_states(), "tally": self.progress.tally})
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        tree = {
            "about": self.about,
            "progress": asdict(self.progress),
            "model": state,
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "objectives": [getattr(objective, "state_dict", dict)() for objective in self.objectives],
            "processes": processes,
        }
        save_checkpoint(self.folder / CHECKPOINT, tree)
        if self.progress.position == 0:
            self._report()
            if time.perf_counter() - self.drawn > DRAW_EVERY:
                write_curves(self.folder / CURVES, self.progress.history)
                self.drawn = time.perf_counter()

    def _restore(self, path: Path) -> None:
        tree = load_checkpoint(path)
        if found := first_difference(self.about, tree["about"]):
            raise InputError(
                f"{path} is the checkpoint of another training: {found}. Give the options and the model that it was "
                "made with, another folder, or start again without it (resume=False, --no-resume); nothing was changed"
            )
        try:
            self._take_back(tree)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{path} holds a training in another form than this version of fxprune writes ({type(error).__name__}: "
                f"{error}). Go on with the version that wrote it, give another folder, or start again without it "
                "(resume=False, --no-resume); nothing was changed"
            ) from error
        if self.accelerator.is_main_process:
            self._report()  # it may have been killed between the two files

    def _take_back(self, tree: dict[str, Any]) -> None:
        """Stand where a checkpoint says."""
        self.progress = _Progress(**tree["progress"])
        self.module.load_state_dict(tree["model"])
        if self.average is not None:
            self.average.load_state_dict(tree["average"])
        self.best = tree["best"]
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(tree["scaler"])
        for objective, state in zip(self.objectives, tree["objectives"], strict=True):
            getattr(objective, "load_state_dict", _nothing)(state)
        mine = tree["processes"][self.accelerator.process_index]
        self.progress.tally = mine["tally"]
        restore_states(mine["random"])

    def _report(self) -> None:
        assert self.folder is not None  # only called with one
        write_metrics(self.folder / METRICS, self.progress.history)


def _nothing(*_: Any) -> None:
    """Stand in for a method that an objective does not have."""


def _may_rest(module: nn.Module) -> bool:
    """Whether some parameters may not be used in a forward pass; only a graph says that all are."""
    if not isinstance(module, fx.GraphModule):
        return True
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    used = {id(value) for path in called for value in module.get_submodule(path).parameters()}
    return any(name not in read and id(value) not in used for name, value in module.named_parameters())


def _together(accelerator: Any, counts: Tally) -> Tally:
    """Return the sums over all processes."""
    sums = torch.tensor(list(asdict(counts).values()), dtype=torch.float64, device=accelerator.device)
    return Tally(*total(accelerator, sums).tolist())


def _status(epoch: int, epochs: int, counts: Tally) -> str:
    means = counts.means()
    accuracy = f", {means['accuracy']:.1%} right" if "accuracy" in means else ""
    return f"epoch {epoch + 1}/{epochs}, loss {means['loss']:.3f}{accuracy}"


def _average_of(module: nn.Module, decay: float) -> AveragedModel:
    """Return a running mean of weights and statistics; what is no float (a count of batches) is the newest."""

    def mean(average: Tensor, new: Tensor, seen: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return new
        return torch.lerp(average, new, 1 - min(decay, (1 + int(seen)) / (10 + int(seen))))

    return AveragedModel(module, avg_fn=mean, use_buffers=True)
