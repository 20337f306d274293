"""Detectors of the package transformers: RT-DETR and D-FINE (extra ``detect``).

RT-DETR (Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024) and D-FINE (Peng
et al., ICLR 2025) see the photo squeezed to a fixed size and answer with Q boxes, each with a score
for every class. Their pictures are prepared here, since the package asks for torchvision to do it.
Files are read as safetensors, so that no code of theirs runs.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.inference.boxes import Box
from kinemesh.inference.duplicates import tidy_boxes
from kinemesh.inference.images import LoadedImage
from kinemesh.optional import require

EXTRA = "detect"
MODEL_TYPES = ("rt_detr", "rt_detr_v2", "d_fine")
"""What ``config.json`` calls the networks that are taken."""
_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]
_NEEDED = (_FILES[0], _FILES[2])


@dataclass(frozen=True)
class PublishedDetector:
    """A network that others publish.

    Attributes:
        repository: Its name on the Hugging Face Hub.
        licence: Of its weights, as its authors state it.
        trained_on: Its training data, which have terms of their own.
    """

    repository: str
    licence: str
    trained_on: str


PUBLISHED = {
    "rtdetr": PublishedDetector("PekingU/rtdetr_r50vd", "Apache-2.0", "COCO 2017"),
    "dfine": PublishedDetector("ustc-community/dfine-xlarge-coco", "Apache-2.0", "COCO 2017"),
}
"""By the name that ``--detector`` has for them."""


class TransformersDetector:
    """A network of RT-DETR or D-FINE that finds people.

    Args:
        folder: With ``config.json`` and ``model.safetensors``, as ``save_pretrained`` writes them;
            ``preprocessor_config.json`` is heeded if it is there.
        device: "auto", "cpu" or "cuda".
        min_score: Boxes with a lower score are left out.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: A file is missing or damaged, the network is of another kind, or none of its
            classes is a person.
    """

    def __init__(self, folder: str | Path, device: str = "auto", min_score: float = 0.5) -> None:
        from kinemesh.inference.predictor import resolve_device  # noqa: PLC0415

        transformers = require("transformers", EXTRA)
        self.folder = Path(folder)
        self.min_score = min_score
        self.device = resolve_device(device)
        config = _read_config(self.folder)
        self.person = _person_class(config, self.folder)
        self._picture = _PictureRule.read(self.folder)
        network = _read_network(transformers, self.folder)
        self.network = network.to(self.device).eval()

    @classmethod
    def published(
        cls, name: str, device: str = "auto", min_score: float = 0.5, *, download: bool = True
    ) -> "TransformersDetector":
        """A published network, from this machine if it was downloaded before.

        Args:
            name: A key of `PUBLISHED`; ``"rtdetr@REVISION"`` takes one revision (a commit or tag).
            device: "auto", "cpu" or "cuda".
            min_score: Boxes with a lower score are left out.
            download: Whether it may be fetched.

        Raises:
            MissingExtraError: transformers is not installed.
            InputError: It is neither on this machine nor can it be fetched.
        """
        require("transformers", EXTRA)
        return cls(fetch(name, download=download), device, min_score)

    @torch.inference_mode()
    def detect(self, photo: LoadedImage) -> list[Box]:
        """Boxes of the people, best first."""
        pixels_13HW = self._picture.prepare(photo.pixels)[None].to(self.device)
        output = self.network(pixel_values=pixels_13HW)
        scores_Q = output.logits[0, :, self.person].float().sigmoid().cpu()
        boxes = relative_boxes(output.pred_boxes[0].float().cpu(), scores_Q, photo.size)
        return tidy_boxes(boxes, photo.size, self.min_score)


def relative_boxes(boxes_Q4: Tensor, scores_Q: Tensor, image_size: tuple[int, int]) -> list[Box]:
    """Boxes (Q, 4) of middle x, y, width and height over those of the image, in its pixels.

    Those whose numbers are not finite, or that have no extent, are left out.
    """
    scale = torch.tensor([*image_size, *image_size], dtype=torch.float64)
    boxes_px = boxes_Q4.double() * scale
    middle_Q2, size_Q2 = boxes_px[:, :2], boxes_px[:, 2:]
    rows = torch.cat([middle_Q2 - size_Q2 / 2, size_Q2, scores_Q[:, None].double()], dim=1)
    usable = rows.isfinite().all(dim=1) & (size_Q2 > 0).all(dim=1)
    return [Box(x, y, width, height, score) for x, y, width, height, score in rows[usable].tolist()]


@dataclass(frozen=True)
class _PictureRule:
    """How a photo becomes what the network sees.

    Attributes:
        size: Width and height to which the photo is squeezed.
        mean: (3,) subtracted from RGB in 0..1.
        std: (3,) divided by.
    """

    size: tuple[int, int] = (640, 640)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def read(cls, folder: Path) -> "_PictureRule":
        """That of ``preprocessor_config.json``, or the usual one if there is no such file."""
        path = folder / "preprocessor_config.json"
        if not path.exists():
            return cls()
        content = _read_json(path)
        try:
            size = content.get("size", {"width": 640, "height": 640})
            normal = content.get("do_normalize", False)
            mean, std = (content["image_mean"], content["image_std"]) if normal else ((), ())
            return cls(
                (int(size["width"]), int(size["height"])),
                tuple(mean) or cls.mean,
                tuple(std) or cls.std,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"detector: '{path}': expected size with width and height, and image_mean and "
                f"image_std if do_normalize is true; {error!r}. Download the file again."
            ) from error

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """(3, H, W) float32 of (H', W', 3) uint8 RGB."""
        squeezed = Image.fromarray(pixels).resize(self.size, Image.Resampling.BILINEAR)
        image_HW3 = torch.from_numpy(np.array(squeezed)).float() / 255.0
        image_HW3 = (image_HW3 - torch.tensor(self.mean)) / torch.tensor(self.std)
        return image_HW3.permute(2, 0, 1)


def fetch(name: str, *, download: bool = True) -> Path:
    """Folder of a published network; one that is on this machine is taken as it is.

    Args:
        name: See `TransformersDetector.published`.
        download: Whether it may be fetched.

    Raises:
        MissingExtraError: The package that downloads is not installed.
        InputError: It is not on this machine and cannot be fetched.
    """
    hub = require("huggingface_hub", EXTRA)
    short, _, revision = name.partition("@")
    model = PUBLISHED[short]
    wanted: dict[str, Any] = {"revision": revision or None, "allow_patterns": _FILES}
    try:
        folder = Path(hub.snapshot_download(model.repository, local_files_only=True, **wanted))
    except (OSError, ValueError):
        folder = None
    if folder is not None and all((folder / file).exists() for file in _NEEDED):
        return folder
    if not download or _is_offline():
        raise InputError(_not_here(model, "and this machine is said to be offline"))
    print(
        f"Downloading the detector {model.repository}, licence {model.licence} as its authors say, "
        f"trained on {model.trained_on}.",
        file=sys.stderr,
    )
    try:
        folder = Path(hub.snapshot_download(model.repository, **wanted))
    except Exception as error:  # of half a dozen network packages
        raise InputError(
            _not_here(model, f"and fetching it failed: {_first_line(error)}")
        ) from error
    print(f"Its revision is {folder.name}; later runs take the same.", file=sys.stderr)
    return folder


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _not_here(model: PublishedDetector, why: str) -> str:
    return (
        f"detector: {model.repository} is not on this machine, {why}. Where there is a network: "
        f"hf download {model.repository} --local-dir detector; then give its folder: "
        "--detector detector. Without a detector, say where people are with --boxes."
    )


def _read_network(transformers: Any, folder: Path) -> Any:
    logging = transformers.utils.logging
    has_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # reading a file from the disk is over at once
    try:
        return transformers.AutoModelForObjectDetection.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # of the package, of safetensors and of torch
        raise InputError(
            f"detector: cannot read the network in '{folder}': {_first_line(error)}. "
            "Download it again, or look at the folder with: ls -l"
        ) from error
    finally:
        if has_bar:
            logging.enable_progress_bar()


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"detector: expected {' and '.join(_NEEDED)} in the folder '{folder}', found no "
            f"{' and no '.join(missing)}. save_pretrained of the package transformers writes both."
        )
    config = _read_json(folder / _NEEDED[0])
    if config.get("model_type") not in MODEL_TYPES:
        raise InputError(
            f"detector: expected a network of type {', '.join(MODEL_TYPES)} in '{folder}', found "
            f"{config.get('model_type')!r}."
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"detector: cannot read '{path}': {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"detector: expected a JSON object in '{path}'. Download it again.")
    return content


def _person_class(config: dict[str, Any], folder: Path) -> int:
    labels = config.get("id2label")
    names = {str(key): str(label) for key, label in labels.items()} if labels else {}
    for key, label in names.items():
        if label.lower() == "person":
            return int(key)
    known = ", ".join(list(names.values())[:8]) or "none"
    raise InputError(
        f"detector: expected a class 'person' in '{folder / _NEEDED[0]}', found {known}. Give a "
        "network that was trained to find people."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
