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
    JOINT_FORMATS,
    MESH_FORMATS,
    SaveFormat,
    check_folder,
    possible_formats,
)
from kinemesh.formats.explanation_picture import encode_explanations
from kinemesh.formats.glb import encode_glb
from kinemesh.formats.names import FileKind, check_targets, result_names
from kinemesh.formats.obj import encode_obj
from kinemesh.formats.people_json import encode_people
from kinemesh.formats.people_npz import encode_people_npz
from kinemesh.formats.picture import encode_overlay, encode_views
from kinemesh.inference.images import LoadedImage, as_photo
from kinemesh.inference.person import Person


def save(
    people: Sequence[Person],
    image: str | Path | np.ndarray | LoadedImage,
    out_dir: str | Path,
    *,
    stem: str | None = None,
    formats: Sequence[SaveFormat] = ALL_FORMATS,
    overlay_suffix: Literal[".png", ".jpg"] = ".png",
    skeleton: bool = False,
) -> list[Path]:
    """Write what was found in a photo; either all of the files or none.

    All files are written under temporary names before the first is moved into place. If a move
    fails nevertheless, the new files are taken away again; an older file of the same name that
    was already replaced stays replaced, whole.

    The files are ``<stem>_overlay.png``, ``<stem>.glb``, ``<stem>.obj``, ``<stem>.json`` and
    ``<stem>.npz``. Without people there is no mesh and so no GLB or OBJ; nor are there for people
    of a network without a mesh, whose overlay shows the joints instead. Their 3D joints are drawn
    in ``<stem>_views.png``. Where people have an ``explanation`` it is drawn in
    ``<stem>_explain.png``, whatever formats are chosen.

    Args:
        people: What `Predictor.predict` returned for the photo.
        image: The photo, to draw on and to name in the JSON.
        out_dir: Folder; made if it is not there.
        stem: Start of the file names; None takes the photo's name, or "people" for an array.
        formats: Which files to write.
        overlay_suffix: ".png" or ".jpg", of all pictures.
        skeleton: Whether the overlay also shows the joints found in the image.

    Returns:
        The written files.

    Raises:
        InputError: A format is unknown, or GLB or OBJ was chosen for people without a mesh; the
            image is unreadable; ``out_dir`` is a file, a folder has the name of a file to write, or
            a file to write is the photo itself or a JSON file of another format.
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
    names = result_names(stem, kinds, overlay_suffix)
    targets = {name: folder / file_name for name, file_name in names.items()}
    check_targets(list(targets.values()), [] if photo.path is None else [photo.path], None)
    files: dict[Path, bytes] = {}
    for name, target in targets.items():
        if name == "overlay":
            picture = encode_overlay(photo.pixels, people, overlay_suffix, skeleton=skeleton)
            files[target] = picture
        elif name == "views":
            files[target] = encode_views(people, overlay_suffix)
        elif name == "explain":
            files[target] = encode_explanations(photo.pixels, people, overlay_suffix)
        else:
            files[target] = _encode(name, people, photo)
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
    mesh = all(person.has_mesh for person in people)
    return list(possible_formats(wanted, mesh=mesh, depth=all(p.has_depth for p in people)))


def _encode(name: SaveFormat, people: Sequence[Person], photo: LoadedImage) -> bytes:
    if name == "glb":
        return encode_glb(people)
    if name == "obj":
        return encode_obj(people)
    if name == "npz":
        return encode_people_npz(people, photo.size)
    return encode_people(people, photo.size, photo.path.name if photo.path is not None else None)
