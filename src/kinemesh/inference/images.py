"""Image files and arrays as upright 8-bit RGB, with one clear error for everything unreadable.

What is done to each kind of picture:

* EXIF orientation is applied, so that pixels lie as a viewer shows them.
* Transparency is composited on white, the ground on which viewers show cut-outs.
* 16-bit values are divided by 257; floating point is taken as 0..1, or as 0..255 if it exceeds 1.
* Grey, palette, CMYK and other colour modes become RGB; an animation gives its first frame.
"""

import errno
import functools
import glob
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kinemesh.errors import InputError

MAX_MEGAPIXELS = 100
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
OPTIONAL_SUFFIXES = frozenset({".avif", ".heic", ".heif"})
"""Images that Pillow decodes only where it was built so, or has a plug-in for them."""
OTHER_PICTURE_SUFFIXES = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".jp2", ".jxl", ".nef", ".orf", ".psd"}
    | {".raf", ".rw2", ".svg"}
)
"""Pictures that folders may hold and that are skipped; see `skipped_pictures`."""
PICTURE_ENDINGS = ("_overlay", "_views")
"""Of the pictures among the results, which are no photos."""


@dataclass(frozen=True)
class LoadedImage:
    """One picture, ready for the predictor.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        path: File it came from; None for an array.
        focal_px: Focal length in pixels from the EXIF 35-mm equivalent, None where it is not told.
            A photo that was cropped after it was taken carries a value that is too short.
    """

    pixels: np.ndarray
    path: Path | None = None
    focal_px: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def load_image(path: str | Path) -> LoadedImage:
    """Decode an image file.

    Raises:
        InputError: The file is missing, is not a regular file, cannot be read, is no complete
            image, has no pixels, or claims more than ``MAX_MEGAPIXELS`` (checked before decoding).
    """
    path = Path(path)
    _check_file(path)
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; the limit here is firm
            with Image.open(stream) as image:
                _check_size(path, image.size)
                image.load()
                focal_35mm = _focal_35mm(image)
                pixels = _to_rgb(_upright(image))
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(
            f"Cannot read '{path}': permission denied. Change it with: chmod u+r '{path}'"
        ) from error
    except OSError as error:
        if error.errno is not None:  # from the system; Pillow's own carry no number
            raise InputError(f"Cannot read '{path}': {error.strerror}.") from error
        raise InputError(_broken_or_foreign(path, error)) from error
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(path, _number_in(str(error)))) from error
    except Exception as error:  # Pillow's plug-ins raise nearly anything on broken data
        raise InputError(_broken_or_foreign(path, error)) from error
    return LoadedImage(pixels, path, _focal_px(focal_35mm, pixels))


def image_from_array(array: np.ndarray) -> LoadedImage:
    """Check an array given in place of a file.

    Args:
        array: (H, W, 3) or (H, W) uint8 RGB or grey; (H, W, 4) is composited on white.

    Raises:
        InputError: Another shape, another type, or no pixels.
    """
    array = np.asarray(array)
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not is_image or array.dtype != np.uint8:
        raise InputError(
            f"Expected an image array of uint8 with shape (H, W, 3), found {array.dtype} with "
            f"shape {array.shape}. Convert floats in 0..1 with: (image * 255).astype('uint8')"
        )
    _check_size(None, (array.shape[1], array.shape[0]))
    return LoadedImage(_to_rgb(Image.fromarray(np.ascontiguousarray(array))))


def as_photo(image: str | Path | np.ndarray | LoadedImage) -> LoadedImage:
    """Load, check or pass on an image.

    Raises:
        InputError: It is not an image.
    """
    if isinstance(image, LoadedImage):
        return image
    return load_image(image) if isinstance(image, (str, Path)) else image_from_array(image)


def find_images(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the image files meant by files, folders and glob patterns.

    Folders are not searched recursively (use the pattern ``'folder/**/*.jpg'``). Hidden files are
    left out, and so are overlays that an earlier run wrote beside their photos. Each file comes
    once; within a folder or pattern the files are sorted by name.

    Raises:
        InputError: A source is empty or does not exist, or a folder or pattern holds no image.
    """
    sources = _listed(sources)
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _expand(source):
            found.setdefault(path.absolute(), path)
    if not found:
        raise InputError("No image was named. Give at least one file, folder or pattern.")
    return list(found.values())


def skipped_pictures(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """Pictures in folders and patterns that `find_images` leaves out, since Pillow reads them not.

    A picture is told by its suffix, as `find_images` does.
    """
    found: set[Path] = set()
    for source in _listed(sources):
        path = Path(source)
        if path.is_dir():
            found.update(_unread(path.iterdir()))
        elif not os.path.lexists(path) and glob.has_magic(str(source)):
            found.update(_unread(_matches(source)))
    return sorted(found)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the images that are looked for in folders: all that this Pillow decodes."""
    return IMAGE_SUFFIXES | (OPTIONAL_SUFFIXES & Image.registered_extensions().keys())


def _listed(sources: str | Path | Iterable[str | Path]) -> list[str | Path]:
    return [sources] if isinstance(sources, (str, Path)) else list(sources)


def _matches(pattern: str | Path) -> list[Path]:
    # pathlib's glob refuses absolute patterns, the glob module takes both kinds
    return [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207


def _expand(source: str | Path) -> list[Path]:
    if not str(source).strip():
        raise InputError("The name of an image is empty. Give a file, a folder or a pattern.")
    path = Path(source)
    try:
        path.lstat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"Cannot look up '{path}': {error.strerror}.") from error
    except ValueError:  # a zero byte in the name
        raise InputError(f"There is no file {str(path)!r}.") from None
    if path.is_dir():
        images = _only_images(path.iterdir())
        if not images:
            raise InputError(
                f"The folder '{path}' has no images (looked for {_suffix_list()}, not in "
                f"sub-folders). For those use a pattern: '{path}/**/*.jpg'"
            )
        return images
    if path.exists() or path.is_symlink():
        return [path]
    if glob.has_magic(str(source)):
        matches = _matches(source)
        images = _only_images(matches)
        if not images:
            raise InputError(
                f"The pattern '{source}' matches no image ({len(matches)} other files). "
                "Check it with: ls " + str(source)
            )
        return images
    raise InputError(_missing(path))


def _with_suffix(paths: Iterable[Path], suffixes: frozenset[str]) -> list[Path]:
    return [
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]


def _unread(paths: Iterable[Path]) -> list[Path]:
    pictures = OPTIONAL_SUFFIXES | OTHER_PICTURE_SUFFIXES
    return _with_suffix(paths, pictures - image_suffixes())


def _only_images(paths: Iterable[Path]) -> list[Path]:
    images = _with_suffix(paths, image_suffixes())
    photos = {(path.parent, path.stem) for path in images}
    kept = [path for path in images if not _is_result(path, photos)]
    return sorted(kept)


def _is_result(path: Path, photos: set[tuple[Path, str]]) -> bool:
    endings = (ending for ending in PICTURE_ENDINGS if path.stem.endswith(ending))
    return any((path.parent, path.stem.removesuffix(ending)) in photos for ending in endings)


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise InputError(
                f"Expected an image file, found the folder '{path}'. "
                f"Predict all of its images with: kinemesh predict '{path}' --out out/"
            )
        if not path.exists():
            raise InputError(_missing(path))
        if not path.is_file():
            raise InputError(f"Expected an image file, found a pipe or device: '{path}'.")
    except PermissionError as error:
        raise InputError(
            f"Cannot look up '{path}': permission denied on one of its folders."
        ) from error
    except OSError as error:
        raise InputError(f"Cannot look up '{path}': {error.strerror}.") from error


def _check_size(path: Path | None, size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        name = "the array" if path is None else f"'{path}'"
        raise InputError(
            f"Expected an image of at least 1x1 pixel, found {width}x{height} in {name}."
        )
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise InputError(_too_large(path, width * height))


def _too_large(path: Path | None, pixels: int | None) -> str:
    name = "the array" if path is None else f"'{path}'"
    found = "more" if pixels is None else f"{pixels / 1e6:.0f} megapixels"
    return (
        f"Expected at most {MAX_MEGAPIXELS} megapixels, found {found} in {name}; "
        "it was not decoded. Shrink or crop it first."
    )


def _number_in(text: str) -> int | None:
    match = re.search(r"\d+", text)
    return int(match.group()) if match else None


def _missing(path: Path) -> str:
    parent = path.parent
    hint = f"Look there with: ls '{parent}'" if parent.is_dir() else f"'{parent}' is no folder."
    return f"There is no file '{path}'. {hint}"


def _broken_or_foreign(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return _not_an_image(path)
    return (
        f"Cannot decode '{path}': {str(error) or type(error).__name__}. The file looks truncated "
        "or damaged; copy or download it again, or re-save it with an image editor."
    )


def _not_an_image(path: Path) -> str:
    size = path.stat().st_size
    what = "an empty file" if size == 0 else "something else"
    return (
        f"Expected an image ({_suffix_list()}), found {what} in '{path}' ({size} bytes); "
        f"its name does not matter, its content does. Look at it with: file '{path}'"
    )


def _suffix_list() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in image_suffixes()))


def _focal_35mm(image: Image.Image) -> float | None:
    try:
        details = image.getexif().get_ifd(ExifTags.IFD.Exif)
        focal_mm = float(details.get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except Exception:  # a broken EXIF block must not cost the photo
        return None
    return focal_mm if 1.0 < focal_mm < 10_000.0 else None  # 0 stands for "unknown"


def _focal_px(focal_35mm: float | None, pixels: np.ndarray) -> float | None:
    if focal_35mm is None:
        return None
    # imported here since it brings torch, which finding and refusing files should not wait for
    from kinemesh.geometry.cameras import focal_from_35mm  # noqa: PLC0415

    return focal_from_35mm(focal_35mm, (pixels.shape[1], pixels.shape[0]))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block must not cost the photo
        return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, layer)
    return np.array(image.convert("RGB"))


def _deep_grey_to_rgb(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        values = np.nan_to_num(values)
        values = values * 255.0 if values.max() <= 1.0 else values
    else:
        values = values / 257.0
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
