"""Results as files: overlay picture, GLB, OBJ, JSON and NPZ."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from kinemesh.errors import InputError
from kinemesh.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

    from kinemesh.inference.images import LoadedImage
    from kinemesh.inference.person import Person

SaveFormat = Literal["overlay", "glb", "obj", "json", "npz"]
ALL_FORMATS: tuple[SaveFormat, ...] = get_args(SaveFormat)


def save(
    people: Sequence["Person"],
    image: "str | Path | np.ndarray | LoadedImage",
    out_dir: str | Path,
    *,
    stem: str | None = None,
    formats: Sequence[SaveFormat] = ALL_FORMATS,
    overlay_suffix: Literal[".png", ".jpg"] = ".png",
) -> list[Path]:
    """Write what was found in a photo; either all of the files or none.

    The files are ``<stem>_overlay.png``, ``<stem>.glb``, ``<stem>.obj``, ``<stem>.json`` and
    ``<stem>.npz``. Without people there is no mesh and so no GLB or OBJ.

    Args:
        people: What `Predictor.predict` returned for the photo.
        image: The photo, to draw on and to name in the JSON.
        out_dir: Folder; made if it is not there.
        stem: Start of the file names; None takes the photo's name, or "people" for an array.
        formats: Which files to write.
        overlay_suffix: ".png" or ".jpg".

    Returns:
        The written files.

    Raises:
        InputError: A format is unknown, the image is unreadable, or ``out_dir`` is a file.
        OSError: The folder is not writable or the disk is full; no file was changed.
    """
    from kinemesh.inference.predictor import as_photo  # noqa: PLC0415

    photo = as_photo(image)
    folder = _folder(out_dir)
    if stem is None:
        stem = photo.path.stem if photo.path is not None else "people"
    contents = {
        name: encode() for name, encode in _encoders(people, photo, stem, formats, overlay_suffix)
    }
    with ExitStack() as files:
        for name, content in contents.items():
            files.enter_context(atomic_path(folder / name)).write_bytes(content)
    return [folder / name for name in contents]


def _encoders(
    people: Sequence["Person"],
    photo: "LoadedImage",
    stem: str,
    formats: Sequence[str],
    overlay_suffix: str,
) -> list[tuple[str, Callable[[], bytes]]]:
    # imported here so that `import kinemesh.formats` brings neither torch nor trimesh
    from kinemesh.formats.glb import encode_glb  # noqa: PLC0415
    from kinemesh.formats.obj import encode_obj  # noqa: PLC0415
    from kinemesh.formats.people_json import encode_people  # noqa: PLC0415
    from kinemesh.formats.people_npz import encode_people_npz  # noqa: PLC0415
    from kinemesh.formats.picture import encode_overlay  # noqa: PLC0415

    image_name = photo.path.name if photo.path is not None else None
    known: dict[str, tuple[str, Callable[[], bytes]]] = {
        "overlay": (
            f"{stem}_overlay{overlay_suffix}",
            lambda: encode_overlay(photo.pixels, people, overlay_suffix),
        ),
        "glb": (f"{stem}.glb", lambda: encode_glb(people)),
        "obj": (f"{stem}.obj", lambda: encode_obj(people)),
        "json": (f"{stem}.json", lambda: encode_people(people, photo.size, image_name)),
        "npz": (f"{stem}.npz", lambda: encode_people_npz(people, photo.size)),
    }
    unknown = [name for name in formats if name not in known]
    if unknown:
        raise InputError(f"Unknown format {unknown[0]!r}; expected some of {', '.join(known)}.")
    wanted = [name for name in known if name in formats]
    return [known[name] for name in wanted if people or name not in ("glb", "obj")]


def _folder(out_dir: str | Path) -> Path:
    folder = Path(out_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected a folder to write to, found the file '{folder}'.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
