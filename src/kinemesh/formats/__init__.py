"""Results as files: overlay picture, GLB, OBJ, JSON and NPZ."""

from pathlib import Path
from typing import Literal, get_args

from kinemesh.errors import InputError

SaveFormat = Literal["overlay", "glb", "obj", "json", "npz"]
ALL_FORMATS: tuple[SaveFormat, ...] = get_args(SaveFormat)


def check_folder(folder: Path) -> None:
    """Refuse a file where a folder for results is expected; a missing folder is fine.

    Raises:
        InputError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected a folder to write to, found the file '{folder}'.")
