"""Scores of networks on labelled data, each printed with its protocol.

`evaluate_dataset` scores any network on any data set by a protocol, `evaluate` the shipped ones on
synthetic data beside a mean shape, `score_submission` a file for the FreiHAND benchmark.
"""

from kinemesh.evaluation.freihand import SubmissionWriter, read_submission, score_submission
from kinemesh.evaluation.mesh import EvaluationOptions, ProtocolResult, evaluate_dataset
from kinemesh.evaluation.sides import LabelSide, NetworkSide
from kinemesh.evaluation.synthetic import (
    DATASETS,
    Evaluation,
    batches,
    evaluate,
    mean_shape,
    merge,
    score,
)
from kinemesh.evaluation.table import SampleTable
from kinemesh.evaluation.tta import TTA_SETTINGS, TtaFusion, TtaSetting

__all__ = [
    "DATASETS",
    "TTA_SETTINGS",
    "Evaluation",
    "EvaluationOptions",
    "LabelSide",
    "NetworkSide",
    "ProtocolResult",
    "SampleTable",
    "SubmissionWriter",
    "TtaFusion",
    "TtaSetting",
    "batches",
    "evaluate",
    "evaluate_dataset",
    "mean_shape",
    "merge",
    "read_submission",
    "score",
    "score_submission",
]
