"""All files of one photo, written together or not at all."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import numpy as np

from kinemesh.errors import InputError
from kinemesh.files import atomic_path
from kinemesh.formats import (
    ALL_FORMATS,
    DEFAULT_FORMATS,
    JOINT_FORMATS,
    MESH_FORMATS,
    PARAMETER_FORMATS,
    SaveFormat,
    check_folder,
    possible_formats,
)
from kinemesh.formats.contents import Bodies, encode_people_as, parameters_of, split_kinds
from kinemesh.formats.explanation_picture import encode_explanations
from kinemesh.formats.glb import person_name
from kinemesh.formats.names import FileKind, check_targets, file_names
from kinemesh.formats.picture import encode_overlay, encode_views
from kinemesh.inference.images import LoadedImage, as_photo
from kinemesh.inference.person import Person


def save(
    people: Sequence[Person],
    image: str | Path | np.ndarray | LoadedImage,
    out_dir: str | Path,
    *,
    stem: str | None = None,
    formats: Sequence[SaveFormat] = DEFAULT_FORMATS,
    overlay_suffix: Literal[".png", ".jpg"] = ".png",
    skeleton: bool = False,
    bodies: Bodies | None = None,
) -> list[Path]:
    """Write what was found in a photo; either all of the files or none.

    All files are written under temporary names before the first is moved into place. If a move
    fails nevertheless, the new files are taken away again; an older file of the same name that
    was already replaced stays replaced, whole.

    The files are ``<stem>_overlay.png``, ``<stem>.glb``, ``<stem>.obj``, ``<stem>.json`` and
    ``<stem>.npz``. Without people there is no mesh and so no GLB or OBJ; nor are there for people
    of a network without a mesh, whose overlay shows the joints instead. Their 3D joints are drawn
    in ``<stem>_views.png``. Where people have an ``explanation`` it is drawn in
    ``<stem>_explain.png``, whatever formats are chosen. Hands beside bodies have an .npz of their
    own, ``<stem>_hands.npz``. docs/exports.md lists the files of the further formats.

    Args:
        people: What `Predictor.predict` returned for the photo.
        image: The photo, to draw on and to name in the JSON.
        out_dir: Folder; made if it is not there.
        stem: Start of the file names; None takes the photo's name, or "people" for an array.
        formats: Which files to write; others than the default ones must be named.
        overlay_suffix: ".png" or ".jpg", of all pictures.
        skeleton: Whether the overlay also shows the joints found in the image.
        bodies: For BVH and skinned GLB of SMPL and MANO their posable bodies by name.

    Returns:
        The written files.

    Raises:
        InputError: A format is unknown, or cannot hold these people (a file of meshes for people
            without one, a BVH or skinned GLB without fitted parameters); the image is unreadable;
            ``out_dir`` is a file, a folder has the name of a file to write, or a file to write is
            the photo itself or a JSON file of another format.
        OSError: The folder is not writable or the disk is full.
    """
    photo = as_photo(image)
    if stem is None:
        stem = photo.path.stem if photo.path is not None else "people"
    folder = Path(out_dir)
    check_folder(folder)
    kinds: list[FileKind] = [*_wanted(formats, people)]
    if any(person.explanation is not None for person in people):
        kinds.append("explain")
    labels = [person_name(index, person) for index, person in enumerate(people)]
    mixed = len(split_kinds(people)) > 1
    targets = {
        kind: [
            folder / name for name in file_names(stem, kind, labels, overlay_suffix, mixed=mixed)
        ]
        for kind in kinds
    }
    inputs = [] if photo.path is None else [photo.path]
    check_targets([path for paths in targets.values() for path in paths], inputs, None)
    files: dict[Path, bytes] = {}
    for kind, paths in targets.items():
        if kind == "overlay":
            contents = [encode_overlay(photo.pixels, people, overlay_suffix, skeleton=skeleton)]
        elif kind == "views":
            contents = [encode_views(people, overlay_suffix)]
        elif kind == "explain":
            contents = [encode_explanations(photo.pixels, people, overlay_suffix)]
        else:
            name = None if photo.path is None else photo.path.name
            contents = list(encode_people_as(kind, people, photo.size, name, bodies))
        files |= zip(paths, contents, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write_together(files)
    return list(files)


def _write_together(files: Mapping[Path, bytes]) -> None:
    for path in files:
        if path.is_dir():
            raise InputError(
                f"Expected to write the file '{path}', found a folder of that name. "
                "Rename it, or choose another folder for the results."
            )
    new = [path for path in files if not os.path.lexists(path)]
    try:
        with ExitStack() as moves:  # moves all files when it closes, after the last was written
            for path, content in files.items():
                moves.enter_context(atomic_path(path)).write_bytes(content)
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.unlink()
        raise


def _wanted(formats: Sequence[str], people: Sequence[Person]) -> list[SaveFormat]:
    unknown = [name for name in formats if name not in ALL_FORMATS]
    if unknown:
        known = ", ".join(ALL_FORMATS)
        raise InputError(f"Unknown format {unknown[0]!r}; expected some of {known}.")
    wanted = [name for name in ALL_FORMATS if name in formats]
    if not people:
        return [name for name in wanted if name not in MESH_FORMATS + JOINT_FORMATS]
    if any(name in PARAMETER_FORMATS for name in wanted):
        parameters_of(people)
    mesh = all(person.has_mesh for person in people)
    return list(possible_formats(wanted, mesh=mesh, depth=all(p.has_depth for p in people)))
