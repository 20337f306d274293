"""Results as files: pictures, meshes, skeletons that move, tables and arrays (docs/exports.md)."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from kinemesh.errors import InputError

DefaultFormat = Literal["overlay", "views", "glb", "obj", "json", "npz"]
FurtherFormat = Literal["ply", "csv", "coco", "bvh", "skinned", "depth", "normals", "mask"]
SaveFormat = DefaultFormat | FurtherFormat
DEFAULT_FORMATS: tuple[SaveFormat, ...] = get_args(DefaultFormat)
"""Written where nothing else is asked for."""
ALL_FORMATS: tuple[SaveFormat, ...] = (*DEFAULT_FORMATS, *get_args(FurtherFormat))
PARAMETER_FORMATS: tuple[SaveFormat, ...] = ("bvh", "skinned")
"""They hold the pose of a body model, which is fitted to the mesh (docs/parameters.md)."""
SURFACE_FORMATS: tuple[SaveFormat, ...] = ("depth", "normals", "mask")
MESH_FORMATS: tuple[SaveFormat, ...] = (
    "glb",
    "obj",
    "ply",
    *PARAMETER_FORMATS,
    *SURFACE_FORMATS,
)
"""They hold nothing but meshes, or what comes from them."""
JOINT_FORMATS: tuple[SaveFormat, ...] = ("views",)
"""They show 3D joints of people without a mesh, which would hide them."""


def check_folder(folder: Path) -> None:
    """Refuse a file where a folder for results is expected; a missing folder is fine.

    Raises:
        InputError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected a folder to write to, found the file '{folder}'.")


def read_formats(words: Iterable[str]) -> tuple[SaveFormat, ...]:
    """The formats of ``--save``, with commas, spaces or both between them.

    Raises:
        InputError: There is none, or one is unknown.
    """
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    known = ", ".join(ALL_FORMATS)
    if not names:
        raise InputError(f"--save is empty; expected some of {known}.")
    for name in names:
        if name not in ALL_FORMATS:
            near = difflib.get_close_matches(name, ALL_FORMATS, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise InputError(
                f"--save: unknown format '{name}'{hint}; expected some of {known}. "
                "Images come before --save."
            )
    return tuple(name for name in ALL_FORMATS if name in names)


def possible_formats(
    formats: Sequence[SaveFormat], *, mesh: bool, depth: bool
) -> tuple[SaveFormat, ...]:
    """The formats that can be written of people.

    Args:
        formats: Those that are wanted.
        mesh: Whether the people have a mesh; without one there are no `MESH_FORMATS`.
        depth: Whether their joints have a place in 3D; views show those of people without a mesh.

    Raises:
        InputError: One was chosen that cannot be; whoever wants all the default ones chose none
            of them.
    """
    impossible: tuple[SaveFormat, ...] = () if mesh else MESH_FORMATS
    impossible += JOINT_FORMATS if mesh or not depth else ()
    no_choice = DEFAULT_FORMATS if set(DEFAULT_FORMATS) <= set(formats) else ()
    chosen = [name for name in formats if name in impossible and name not in no_choice]
    if chosen:
        shown = "shows 3D joints without a mesh, which this model does not recover"
        if chosen[0] in MESH_FORMATS:
            shown = "holds a mesh, but the model recovers joints without one"
        elif mesh:
            shown = "shows the joints of people without a mesh, and this model recovers meshes"
        raise InputError(
            f"'{chosen[0]}' {shown}. "
            f"Choose some of {', '.join(n for n in ALL_FORMATS if n not in impossible)}."
        )
    return tuple(name for name in formats if name not in impossible)
