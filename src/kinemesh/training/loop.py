"""The training loop: one for all tasks, on one process or many."""

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kinemesh import __version__
from kinemesh.errors import InputError
from kinemesh.files import write_json
from kinemesh.optional import require
from kinemesh.training.batches import StepBatches, step_loader
from kinemesh.training.checkpoints import (
    atomic_folder,
    read_checkpoint,
    read_state,
    recover_folder,
    write_checkpoint,
)
from kinemesh.training.config import Recipe, TrainConfig, changed_fields, check_config, flatten
from kinemesh.training.learner import Learner
from kinemesh.training.log import LossWindow, RunLog, finite_or_none
from kinemesh.training.progress import ProgressBar, Throughput
from kinemesh.training.pulse import Interrupted, Pulse
from kinemesh.training.randomness import (
    RandomState,
    preserved_random_state,
    random_state,
    restore_random_state,
    seed_everything,
)
from kinemesh.training.schedules import lr_factor, run_fraction
from kinemesh.training.task import Batch, ChoosesAmongEqual, StartsFromWeights, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended.

    Attributes:
        step: Updates done.
        metrics: Result of the last validation.
        best_metrics: Result of the validation with the lowest ``task.metric``.
        output: Folder of the run.
        best: Weights of that validation, of the last one if the task measures nothing; None if
            the metric was never finite.
    """

    step: int
    metrics: dict[str, float]
    best_metrics: dict[str, float]
    output: Path
    best: Path | None


@dataclass
class _Position:
    """How far a run has come; goes into ``state.json`` as it is."""

    step: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    resumed_from: str | None = None  # checkpoint of another run that this one branched off from


def train(recipe: Recipe) -> TrainResult:
    """Run a recipe from its beginning or from its last checkpoint to its end.

    Started by ``accelerate launch`` or ``torchrun``, the same call trains on many processes.

    Args:
        recipe: What to train and how.

    Raises:
        InputError: The recipe is impossible or does not fit the checkpoint in its output folder.
        TrainingDiverged: A loss or a gradient is not finite.
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written (exit code 130).
        MissingExtraError: Accelerate or a tracker is not installed.
    """
    accelerator = _make_accelerator(recipe)
    recipe = recipe.completed(accelerator.num_processes)
    check_config(recipe)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    seed_everything(recipe.seed)
    trainer = Trainer(recipe, recipe.build_task(), accelerator)
    try:
        return trainer.run()
    finally:
        accelerator.end_training()


class Trainer:
    """One run of a task.

    Args:
        config: How to train.
        task: What to train.
        accelerator: Accelerate's ``Accelerator``.
    """

    def __init__(self, config: TrainConfig, task: Task, accelerator: "Accelerator") -> None:
        self.config, self.task, self.accelerator = config, task, accelerator
        self.is_main: bool = accelerator.is_main_process
        self.learner = Learner(task, config, accelerator)
        # Weights are the same in every process, dropout is not.
        seed_everything(config.seed, 1 + accelerator.process_index)
        self.at = _Position()
        self.window = LossWindow()
        log_path = config.output / "log.jsonl" if self.is_main else None
        self.log = RunLog(log_path, accelerator.trackers)
        self.progress = ProgressBar(config.steps, visible=self.is_main)

    def run(self) -> TrainResult:
        """Resume if there is something to resume, then train to the end."""
        self._prepare_output()
        source = self._find_checkpoint()
        if source is not None:
            self._load(source)
        self.log.rewind(self.at.step if self._is_own(source) else 0)
        if self.is_main:
            self._describe()
        with Pulse(self.accelerator, self.at.seconds) as pulse, self.progress:
            self._train(pulse)
        best = self.config.output / "best" / "weights.safetensors"
        return TrainResult(
            self.at.step,
            self.at.metrics,
            self.at.best_metrics,
            self.config.output,
            None if self.at.best_step is None else best,
        )

    def _describe(self) -> None:
        """Record the recipe, what it starts from, and how it departs from a published one."""
        record = flatten(self.config)
        if isinstance(self.task, StartsFromWeights) and self.task.started_from is not None:
            record["started_from"] = self.task.started_from
            self.progress.say(f"Started from {self.task.started_from}.")
        departures = self.config.departures(self.accelerator.num_processes)
        if departures:
            record["departures"] = departures
            listed = "".join(f"\n  {departure}" for departure in departures)
            self.progress.say(f"Not as published:{listed}")
        write_json(self.config.output / "recipe.json", record)

    def _train(self, pulse: Pulse) -> None:
        config, at = self.config, self.at
        throughput = Throughput(config.batch_size * self.accelerator.num_processes, at.step)
        start = (self._fraction(), at.seconds)
        if self._finished():
            self.progress.say(f"Nothing to do: '{config.output}' is complete at step {at.step}.")
            return
        for batch in self._batches():
            factor = lr_factor(config.schedule, at.step, config.steps, self._fraction())
            losses = self.learner.update(self.learner.place(batch), factor, at.step)
            at.step += 1
            self.window.add(losses)
            pulse.beat(at.step)
            at.seconds = pulse.seconds
            self.progress.advance(at.step, self._fraction())
            last = self._finished()
            if at.step % config.log_every == 0 or last:
                self._write_log(factor, throughput.rate(at.step), start)
            with throughput.paused():
                if at.step % config.validate_every == 0 or last:
                    self._validate()
                if at.step % config.checkpoint_every == 0 or last or pulse.stop:
                    self._save()
            if last:
                break
            if pulse.stop:
                self._interrupt()

    def _batches(self) -> Iterator[Batch]:
        batches = StepBatches(
            self.task.train_dataset(),
            self.task.collate,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        return step_loader(
            batches,
            self.at.step,
            self.config.steps,
            workers=self.config.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _fraction(self) -> float:
        limit = self.config.time_limit_minutes
        return run_fraction(self.at.step, self.config.steps, self.at.seconds, limit)

    def _finished(self) -> bool:
        return self._fraction() >= 1.0

    def _write_log(self, factor: float, rate: float, start: tuple[float, float]) -> None:
        """Add a row to the log and refresh the numbers beside the bar."""
        at = self.at
        self.window.settle(self.accelerator, at.step)
        means = self.window.means()
        row = {
            "losses": means,
            "lr": self.config.optim.lr * factor,
            "images_per_second": round(rate, 2),
            "seconds": round(at.seconds, 3),
        }
        self.log.write("train", at.step, row)
        fraction = self._fraction()
        pace = (at.seconds - start[1]) / max(fraction - start[0], 1e-9)
        self.progress.report(at.step, means["total"], rate, pace * (1.0 - fraction))

    def _validate(self) -> None:
        """Score the averaged weights in the main process, draw, and keep the best."""
        self.window.settle(self.accelerator, self.at.step)
        at, metric = self.at, self.task.metric
        if metric is None:
            at.best_step = at.step
            if self.is_main:
                self._save_best()
            return
        found: list[Any] = [None]
        if self.is_main:
            with preserved_random_state(), torch.no_grad():
                seed_everything(self.config.seed)
                found = [self._measure(metric)]
                self.learner.wrapped.train()  # without averaging, these weights were measured
        require("accelerate.utils", "train").broadcast_object_list(found)
        at.metrics = found[0]
        score, record = at.metrics[metric], at.best_metrics.get(metric)
        later = isinstance(self.task, ChoosesAmongEqual) and self.task.later_is_better
        if score is not None and (record is None or score < record or (later and score == record)):
            at.best_step, at.best_metrics = at.step, at.metrics
            if self.is_main:
                self._save_best()

    def _measure(self, metric: str) -> dict[str, float]:
        model, device, at = self.learner.average.model.eval(), self.accelerator.device, self.at
        metrics: dict[str, float] = finite_or_none(dict(self.task.validate(model, device)))
        if metric not in metrics:
            raise InputError(
                f"The task's validation returned {sorted(metrics)}, but its metric is "
                f"'{metric}'. Return that key, or set the metric to one of these."
            )
        self.log.write("validation", at.step, {"metrics": metrics})
        scores = "  ".join(
            f"{key} {value:.5g}" for key, value in metrics.items() if value is not None
        )
        self.progress.say(f"step {at.step}  validation  {scores}")
        image = self.task.picture(model, device)
        if image is not None:
            self.log.picture(self.config.output / "pictures", at.step, image)
        return metrics

    def _save_best(self) -> None:
        at = self.at
        metadata = {"step": at.step, "metrics": at.metrics, "recipe": flatten(self.config)}
        with atomic_folder(self.config.output / "best") as folder:
            model = self.learner.average.model
            self.task.save_weights(model, folder / "weights.safetensors", metadata)
            write_json(folder / "metrics.json", {"step": at.step, "metrics": at.metrics})

    def _save(self) -> None:
        """Write ``last/`` in the main process, with the random states of all."""
        self.window.settle(self.accelerator, self.at.step)
        states = require("accelerate.utils", "train").gather_object([random_state()])
        if self.is_main:
            tensors = self.learner.tensors() | {"log.window": self.window.state()}
            for process, saved in enumerate(states):
                tensors |= {f"random.{process}.{key}": item for key, item in saved.tensors.items()}
            state = {
                **vars(self.at),
                "loss_names": self.window.names,
                "scaler": self.learner.scaler_state(),
                "random": [saved.plain for saved in states],
                "processes": self.accelerator.num_processes,
                "recipe": flatten(self.config),
                "versions": {"kinemesh": __version__, "torch": torch.__version__},
            }
            last = self.config.output / "last"
            write_checkpoint(last, tensors, state, self.config.max_shard_mb)
            self._keep_copy(last)
        self.accelerator.wait_for_everyone()

    def _keep_copy(self, last: Path) -> None:
        if self.config.keep_history:
            with atomic_folder(self.config.output / f"step-{self.at.step:07d}") as folder:
                shutil.copytree(last, folder, dirs_exist_ok=True)
            for old in sorted(self.config.output.glob("step-*"))[: -self.config.keep_history]:
                shutil.rmtree(old)

    def _prepare_output(self) -> None:
        if self.is_main:
            try:
                self.config.output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"Cannot create the folder '{self.config.output}' ({error.strerror}). "
                    "Choose another --output."
                ) from error
            for name in ("last", "best"):
                recover_folder(self.config.output / name)
        self.accelerator.wait_for_everyone()

    def _find_checkpoint(self) -> Path | None:
        """``last/`` of this run if it has one, so that the same command always continues."""
        resume, last = self.config.resume, self.config.output / "last"
        if not last.exists():
            return resume if isinstance(resume, Path) else None
        if resume == "never":
            raise InputError(
                f"'{self.config.output}' already holds a run and resume is 'never'. "
                "Choose another --output, delete the folder, or use --resume auto."
            )
        if isinstance(resume, Path) and not self._is_named(last):
            origin = read_state(last).get("resumed_from")
            if origin != str(resume.resolve()):
                began = f"from '{origin}'" if origin else "from nothing"
                raise InputError(
                    f"'{self.config.output}' already holds a run, which began {began} and not "
                    f"from '{resume}'. To start from there, choose another --output; to continue "
                    "this run, leave out --resume."
                )
        return last

    def _is_named(self, source: Path) -> bool:
        resume = self.config.resume
        return isinstance(resume, Path) and resume.resolve() == source.resolve()

    def _is_own(self, source: Path | None) -> bool:
        return source is not None and source.resolve().parent == self.config.output.resolve()

    def _load(self, source: Path) -> None:
        tensors, state = read_checkpoint(source)
        self._compare(source, state)
        self.learner.load(tensors, state["scaler"])
        self.at = _Position(**{name: state[name] for name in vars(self.at) if name in state})
        if source != self.config.output / "last":
            self.at.resumed_from = str(source.resolve())
        if not (self._is_own(source) and (self.config.output / "best").exists()):
            self.at.best_step, self.at.best_metrics = None, {}
        self.window.restore(tuple(state["loss_names"]), tensors["log.window"])
        process = self.accelerator.process_index
        if process < len(state["random"]):
            prefix = f"random.{process}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            restore_random_state(RandomState(state["random"][process], own))
        self.progress.say(f"Resuming from '{source}' at step {self.at.step}.")

    def _compare(self, source: Path, state: dict[str, Any]) -> None:
        """Refuse a changed recipe, or warn when the checkpoint was named on purpose."""
        changes = changed_fields(state["recipe"], flatten(self.config))
        processes = self.accelerator.num_processes
        if state["processes"] != processes:
            changes.append(f"processes: {state['processes']} in the checkpoint, {processes} now")
        if not changes:
            return
        listed = "".join(f"\n  {change}" for change in changes)
        if self._is_named(source):
            if self.is_main:
                warnings.warn(f"Continuing '{source}' with changes:{listed}", stacklevel=2)
            return
        raise InputError(
            f"The recipe differs from the one that wrote '{source}':{listed}\n"
            "Start again in another --output, or continue with these changes on purpose: "
            f"--resume {source}"
        )

    def _interrupt(self) -> None:
        last = self.config.output / "last"
        never = self.config.resume == "never"
        hint = "Use --resume auto" if never else "Run the same command"
        message = (
            f"Interrupted after step {self.at.step}; the checkpoint is in '{last}'. "
            f"{hint} to continue."
        )
        self.progress.say(message)
        raise Interrupted(message)


def _make_accelerator(config: TrainConfig) -> "Accelerator":
    accelerate = require("accelerate", "train")
    for tracker in config.trackers:
        require(tracker, "track")
    # Accelerate keeps its settings for the whole process; a second run may have others.
    require("accelerate.state", "train").AcceleratorState._reset_state(
        reset_partial_state=not torch.distributed.is_initialized()
    )
    parallel = accelerate.DistributedDataParallelKwargs(
        find_unused_parameters=config.find_unused_parameters
    )
    # Without an accelerator, Accelerate joins launched processes only where it is told to use CPUs.
    accelerator = accelerate.Accelerator(
        cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output if config.trackers else None,
        kwargs_handlers=[parallel],
    )
    if config.trackers:
        wandb = {"name": config.output.name, "dir": str(config.output), "config": flatten(config)}
        accelerator.init_trackers("kinemesh", init_kwargs={"wandb": wandb})
    return accelerator
