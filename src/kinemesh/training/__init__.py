"""Training: one loop for all tasks, driven by recipes."""

from kinemesh.training.config import OptimConfig, Recipe, ScheduleConfig, TrainConfig
from kinemesh.training.log import TrainingDiverged
from kinemesh.training.loop import TrainResult, train
from kinemesh.training.pulse import Interrupted
from kinemesh.training.task import Task, default_parameter_groups

__all__ = [
    "Interrupted",
    "OptimConfig",
    "Recipe",
    "ScheduleConfig",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "default_parameter_groups",
    "train",
]
