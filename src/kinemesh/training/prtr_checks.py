"""What PRTR's recipes check before the first step, and what they say about their data."""

from pathlib import Path

from kinemesh.data.coco_keypoints import find_annotations as find_coco
from kinemesh.data.mpii import find_annotations as find_mpii
from kinemesh.errors import InputError


def check_queries(option: str, queries: int, joints: int) -> None:
    """Refuse before the first step what could not be matched in it.

    Raises:
        InputError: There are more joints than queries.
    """
    if queries < joints:
        raise InputError(
            f"{option}: expected at least {joints}, one for each joint, found {queries}."
        )


def validation_notes(data: str, validation: str) -> list[str]:
    """Says so where the best weights are chosen by the training data.

    It happens unasked where a folder holds only the annotations for training: a single file is
    taken for every split.

    Args:
        data: Training data as recipes name them, ``coco:PATH`` or ``mpii:PATH`` for example.
        validation: Data for validation, "" for none.
    """
    kind = data.partition(":")[0]
    if kind not in ("coco", "mpii") or validation.partition(":")[0] != kind:
        return []
    find, split = (find_coco, "val") if kind == "coco" else (find_mpii, "valid")
    train = find(Path(data.partition(":")[2]), "train")
    if find(Path(validation.partition(":")[2]), split).resolve() != train.resolve():
        return []
    return [f"best weights are chosen on the training data, '{train}'"]
