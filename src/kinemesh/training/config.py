"""What a run is told: typed dataclasses for recipes, the command line and the record of a run."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from kinemesh.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from kinemesh.training.task import Task

FREE_TO_CHANGE = frozenset(
    {
        "steps",
        "output",
        "cut_outs",
        "layer_folder",
        "resume",
        "workers",
        "threads",
        "device",
        "validate_every",
        "checkpoint_every",
        "log_every",
        "keep_history",
        "max_shard_mb",
        "trackers",
        "time_limit_minutes",
    }
)
"""Fields that may differ between a checkpoint and the run that continues it."""


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) and what is done to gradients before it."""

    lr: float = 3e-4
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices and kernels; one-dimensional parameters get none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two running moments."""
    clip_norm: float | None = 1.0
    """Largest L2 norm of all gradients together; None leaves them as they are."""
    backbone_lr_scale: float = 1.0
    """Factor on the learning rate of parameters whose name begins with 'backbone.'."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, as a factor on its peak."""

    kind: Literal["cosine", "step", "epochs", "constant"] = "cosine"
    """Shape after warm-up."""
    warmup_steps: int = 0
    """Steps of linear growth from nearly zero to the peak."""
    step_at: tuple[float, ...] = (0.5,)
    """For 'step': where to drop; below 1 a fraction of the run, otherwise a step number."""
    factor: float = 0.1
    """For 'step' and 'epochs': what each drop multiplies the learning rate by."""
    epochs: int = 200
    """For 'epochs': passes over the data in the whole run; a drop follows each half of them."""
    steps_per_epoch: int = 0
    """For 'epochs': updates in one pass; 0 lets the recipe count its data set."""
    final_lr_ratio: float = 0.0
    """For 'cosine': the last learning rate over the peak."""


@dataclass(kw_only=True)
class EpochCosineConfig(ScheduleConfig):
    """Half a cosine that moves once an epoch, after a warm-up and before a cool-down.

    With the kind "cosine" the rate of epoch e, counted from 0, is that of warm-up for the first
    ``warmup_epochs``, then half a cosine over ``epochs`` as if there had been no warm-up, and the
    lowest for ``cooldown_epochs`` more. Other kinds are those of `ScheduleConfig`.
    """

    epochs: int = 300
    """Epochs of the cosine, the warm-up included."""
    warmup_epochs: int = 5
    """Epochs of linear growth."""
    cooldown_epochs: int = 10
    """Epochs at the lowest rate after the cosine."""
    first_lr_ratio: float = 0.0
    """The first learning rate over the peak."""


@dataclass(kw_only=True)
class TrainConfig:
    """Everything the loop needs to know that is not the task itself."""

    steps: int = 1000
    """Updates of the weights in the whole run; 0 lets a recipe that counts epochs work it out."""
    batch_size: int = 32
    """Samples of one update, per process."""
    seed: int = 0
    """Decides weights, data order, augmentation and dropout."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over time."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, the ones that are validated and exported; 0: no averaging."""
    workers: int = 0
    """Processes that prepare batches; 0 prepares them in the training process."""
    threads: int | None = None
    """Torch threads of each process; None leaves torch's choice."""
    device: Literal["auto", "cpu"] = "auto"
    """'auto' takes an accelerator where there is one."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's forward pass; weights and losses stay float32."""
    channels_last: bool = False
    """Keep images and kernels channels-last, which is faster for many convolutions."""
    find_unused_parameters: bool = False
    """For many processes: allow parameters that take no part in the loss."""
    validate_every: int = 500
    """Steps between validations; the last step is always validated."""
    checkpoint_every: int = 500
    """Steps between writings of 'last/'; the last step is always written."""
    log_every: int = 20
    """Steps between rows of the log; a row holds the means since the row before."""
    keep_history: int = 0
    """How many numbered copies 'step-<n>/' to keep beside 'last/'; the oldest goes first."""
    max_shard_mb: float | None = None
    """Largest tensor file of 'last/' in megabytes (10^6 bytes); None writes one file."""
    time_limit_minutes: float | None = None
    """Wall-clock budget: the schedule follows the larger of step fraction and time fraction, so
    that a run on hardware of unknown speed ends with its learning rate annealed."""
    output: Path = Path("runs/unnamed")
    """Folder of the run."""
    resume: Literal["auto", "never"] | Path = "auto"
    """'auto' continues output/last if it exists; 'never' refuses a folder that has one; a path is
    a checkpoint folder to start from on purpose, even with a changed recipe; once output/last
    exists, the same path continues that."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Dashboards to write beside log.jsonl."""

    def departures(self, processes: int) -> list[str]:
        """How the run differs from a published one that it follows; the log begins with it."""
        return []


@dataclass(kw_only=True)
class Recipe(TrainConfig):
    """A training configuration that can build its task; subclass it with the task's own fields.

    A recipe is a function without arguments that returns an instance of such a subclass.
    """

    def completed(self, processes: int) -> Self:
        """Fill in what follows from the data set and from the number of processes.

        `train` calls this before all else, so it is the place to refuse a missing file.
        """
        return self

    def build_task(self) -> "Task":
        """Build the task from the fields of this recipe."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_task()")


def flatten(config: "TrainConfig | DataclassInstance", prefix: str = "") -> dict[str, Any]:
    """Turn a dataclass into ``{"optim.lr": 0.0003, ...}`` with values that JSON can hold."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = _plain(value)
    return flat


def changed_fields(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Describe the fields that decide the run's numbers and differ, one line each.

    Args:
        saved: ``flatten`` of the configuration in the checkpoint.
        current: ``flatten`` of the configuration about to run.
    """
    names = sorted((saved.keys() | current.keys()) - FREE_TO_CHANGE)
    return [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, {current.get(name, 'absent')} now"
        for name in names
        if saved.get(name, "absent") != current.get(name, "absent")
    ]


def check_config(config: TrainConfig) -> None:
    """Refuse impossible settings before any work is done.

    Raises:
        InputError: A field is out of range; the message names it.
    """
    optim, schedule = config.optim, config.schedule
    limit, clip = config.time_limit_minutes, optim.clip_norm
    rules: list[tuple[str, Any, bool, str]] = [
        (name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
        for name in ("steps", "batch_size", "validate_every", "checkpoint_every", "log_every")
    ]
    rules += [
        ("workers", config.workers, config.workers >= 0, "0 or more"),
        ("threads", config.threads, config.threads is None or config.threads >= 1, "1 or more"),
        ("keep_history", config.keep_history, config.keep_history >= 0, "0 or more"),
        ("ema_decay", config.ema_decay, 0 <= config.ema_decay < 1, "in [0, 1)"),
        ("time_limit_minutes", limit, limit is None or limit > 0, "above 0"),
        (
            "max_shard_mb",
            config.max_shard_mb,
            config.max_shard_mb is None or config.max_shard_mb >= 0.01,
            "0.01 or more",
        ),
        ("optim.lr", optim.lr, optim.lr > 0, "above 0"),
        ("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        ("optim.clip_norm", clip, clip is None or clip > 0, "above 0, or None for no clipping"),
        ("optim.betas", optim.betas, all(0 <= beta < 1 for beta in optim.betas), "in [0, 1)"),
        ("schedule.warmup_steps", schedule.warmup_steps, schedule.warmup_steps >= 0, "0 or more"),
        ("schedule.epochs", schedule.epochs, schedule.epochs >= 1, "at least 1"),
        (
            "schedule.steps_per_epoch",
            schedule.steps_per_epoch,
            schedule.kind != "epochs" or schedule.steps_per_epoch >= 1,
            "at least 1 with kind 'epochs', where the recipe does not count its data",
        ),
        ("schedule.step_at", schedule.step_at, all(at > 0 for at in schedule.step_at), "above 0"),
        (
            "schedule.final_lr_ratio",
            schedule.final_lr_ratio,
            0 <= schedule.final_lr_ratio <= 1,
            "in [0, 1]",
        ),
    ]
    for name, value, holds, wanted in rules:
        if not holds:
            raise InputError(
                f"'{name}' must be {wanted}, but it is {value}. Change it in the recipe."
            )


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
