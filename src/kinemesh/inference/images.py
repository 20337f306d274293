"""Image files and arrays as upright 8-bit RGB, with one clear error for everything unreadable.

What is done to each kind of picture:

* EXIF orientation is applied, so that pixels lie as a viewer shows them.
* Transparency is composited on white, the ground on which viewers show cut-outs.
* 16-bit values are divided by 257; floating point is taken as 0..1, or as 0..255 if it exceeds 1.
* Grey, palette, CMYK and other colour modes become RGB; an animation gives its first frame.
"""

import glob
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
OVERLAY_ENDING = "_overlay"


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
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(path, _number_in(str(error)))) from error
    except UnidentifiedImageError as error:
        raise InputError(_not_an_image(path)) from error
    except Exception as error:  # Pillow's plug-ins raise nearly anything on broken data
        raise InputError(
            f"Cannot decode '{path}': {error or type(error).__name__}. The file looks truncated or "
            "damaged; copy or download it again, or re-save it with an image editor."
        ) from error
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
        InputError: A source does not exist, or a folder or pattern holds no image.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _expand(source):
            found.setdefault(path.absolute(), path)
    if not found:
        raise InputError("No image was named. Give at least one file, folder or pattern.")
    return list(found.values())


def _expand(source: str | Path) -> list[Path]:
    path = Path(source)
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
        # pathlib's glob refuses absolute patterns, the glob module takes both kinds
        matches = glob.glob(str(source), recursive=True)  # noqa: PTH207
        images = _only_images(Path(match) for match in matches)
        if not images:
            raise InputError(
                f"The pattern '{source}' matches no image ({len(matches)} other files). "
                "Check it with: ls " + str(source)
            )
        return images
    raise InputError(_missing(path))


def _only_images(paths: Iterable[Path]) -> list[Path]:
    images = [
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    ]
    photos = {(path.parent, path.stem) for path in images}
    kept = [path for path in images if not _is_overlay(path, photos)]
    return sorted(kept)


def _is_overlay(path: Path, photos: set[tuple[Path, str]]) -> bool:
    photo = path.stem.removesuffix(OVERLAY_ENDING)
    return photo != path.stem and (path.parent, photo) in photos


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


def _not_an_image(path: Path) -> str:
    size = path.stat().st_size
    what = "an empty file" if size == 0 else "something else"
    return (
        f"Expected an image ({_suffix_list()}), found {what} in '{path}' ({size} bytes); "
        f"its name does not matter, its content does. Look at it with: file '{path}'"
    )


def _suffix_list() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


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
