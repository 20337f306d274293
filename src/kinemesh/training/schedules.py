"""Learning rate over a run, as pure functions of the position, so that resuming needs no state."""

import math

from kinemesh.errors import InputError
from kinemesh.training.config import EpochCosineConfig, ScheduleConfig


def run_fraction(
    step: int, steps: int, seconds: float = 0.0, time_limit_minutes: float | None = None
) -> float:
    """How much of the run is over, in [0, 1].

    Args:
        step: Updates done.
        steps: Updates of the whole run.
        seconds: Time spent in training, over all resumed parts.
        time_limit_minutes: Budget; when set, the larger of the two fractions counts.
    """
    fraction = step / steps
    if time_limit_minutes is not None:
        fraction = max(fraction, seconds / (60.0 * time_limit_minutes))
    return min(fraction, 1.0)


def lr_factor(schedule: ScheduleConfig, step: int, steps: int, fraction: float) -> float:
    """Factor on the peak learning rate for the update that follows ``step`` updates.

    Args:
        schedule: Shape and its numbers.
        step: Updates done, 0 at the start.
        steps: Updates of the whole run.
        fraction: ``run_fraction`` at this step.
    """
    if isinstance(schedule, EpochCosineConfig) and schedule.kind == "cosine":
        return epoch_cosine(schedule, max(step, int(fraction * steps)) // schedule.steps_per_epoch)
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.kind == "cosine":
        return warmup * _cosine(schedule, steps, fraction)
    if schedule.kind == "step":
        drops = sum((fraction if at < 1 else step) >= at for at in schedule.step_at)
        return warmup * schedule.factor**drops
    if schedule.kind == "epochs":
        # with a time limit the run may be further than its steps say
        iteration = max(step + 1, int(fraction * steps))
        epoch = iteration // schedule.steps_per_epoch
        return warmup * schedule.factor ** half_runs(epoch, schedule.epochs)
    return warmup


def epoch_cosine(schedule: EpochCosineConfig, epoch: int) -> float:
    """Factor on the peak learning rate in an epoch, counted from 0.

    The cosine does not begin at the end of the warm-up but at epoch 0, so that the rate steps down
    a little where the warm-up ends.
    """
    if epoch < schedule.warmup_epochs:
        first = schedule.first_lr_ratio
        return first + (1.0 - first) * epoch / schedule.warmup_epochs
    if epoch >= schedule.epochs:
        return schedule.final_lr_ratio
    final = schedule.final_lr_ratio
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * epoch / schedule.epochs))


def steps_per_epoch(samples: int, batch_size: int, processes: int) -> int:
    """Updates that count as one epoch: the whole batches in a data set, over all processes.

    Args:
        samples: Size of the data set.
        batch_size: Samples of one process in one update.
        processes: Number of processes.

    Raises:
        InputError: The data set does not fill one batch.
    """
    updates = samples // (batch_size * processes)
    if updates < 1:
        raise InputError(
            f"The training data has {samples} samples, but one update takes {batch_size} on each "
            f"of {processes} processes; lower --batch-size."
        )
    return updates


def half_runs(epoch: int, epochs: int) -> int:
    """Halves of a run that are over: METRO's number of drops of the learning rate.

    METRO counts iterations from 1 and sets ``epoch = iteration // steps_per_epoch`` before each
    update. So each epoch begins one update early, and the very last update of a run already
    belongs to the next half: it is made with a hundredth of the peak.
    """
    return int(epoch // (epochs / 2))


def _cosine(schedule: ScheduleConfig, steps: int, fraction: float) -> float:
    """Half a cosine from the end of warm-up to the end (Loshchilov and Hutter 2017, eq. 5)."""
    start = min(schedule.warmup_steps / steps, 1.0)
    progress = (fraction - start) / (1.0 - start) if start < 1.0 else 0.0
    progress = min(max(progress, 0.0), 1.0)
    final = schedule.final_lr_ratio
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
