"""Calibrations of Aria glasses: from a recording's own JSON to the camera of the released video.

The JSON speaks of the colour sensor's 2880 x 2880 pixels. The released video is cropped by 32 of
them on each side and halved to 1408 x 1408.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from kinemesh.errors import InputError
from kinemesh.geometry.fisheye import PARAMETERS, Fisheye624
from kinemesh.optional import require

COLOUR = "camera-rgb"
VIDEO_SIZE, _SENSOR_SIZE, _MARGIN = 1408, 2880, 32

Calibration = dict[str, Any]


def read_calibration(path: str | Path) -> Calibration:
    """The JSON of a device with its colour camera in video pixels.

    A file that is still in pixels of the sensor is converted; which one it is shows in the
    principal point, which lies near the middle of the picture.

    Raises:
        InputError: It is missing, damaged, or has no FISHEYE624 colour camera.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the calibration '{path}': {error}.") from error
    return calibration_of_video(text, f"'{path}'")


def calibration_of_video(text: str, where: str) -> Calibration:
    """As `read_calibration`, from the content of a file; ``where`` names it in messages."""
    try:
        calibration = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: expected JSON, found a damaged file ({error}).") from error
    numbers = _colour_parameters(calibration, where)
    middle = (VIDEO_SIZE + _SENSOR_SIZE) / 4  # halfway between the two middles
    if numbers[1] < middle:
        return dict(calibration)
    converted = copy.deepcopy(calibration)
    # the half pixel is between the corner and the centre of the first pixel
    numbers[:3] = [
        numbers[0] / 2,
        *((place - 0.5 - _MARGIN) / 2 for place in numbers[1:3]),
    ]
    _colour_camera(converted, where)["Projection"]["Params"] = numbers
    return dict(converted)


def colour_camera(calibration: Calibration, where: str) -> Fisheye624:
    """The colour camera of a calibration.

    Raises:
        InputError: There is none, or it is of another model.
    """
    return Fisheye624(np.array(_colour_parameters(calibration, where)))


def calibration_of_recording(path: str | Path) -> Calibration:
    """The calibration that a ``.vrs`` recording carries, in video pixels.

    Raises:
        InputError: The recording cannot be read or has none.
        MissingExtraError: The package ``projectaria-tools`` is not installed.
    """
    provider_of = require("projectaria_tools.core.data_provider", "aria").create_vrs_data_provider
    provider = provider_of(str(path))
    if provider is None:
        raise InputError(f"'{path}': expected a recording of Aria glasses, found something else.")
    text = provider.get_file_tags().get("calib_json", "")
    return calibration_of_video(text, f"'{path}', tag calib_json")


def _colour_parameters(calibration: Any, where: str) -> list[float]:
    projection = _colour_camera(calibration, where).get("Projection") or {}
    numbers = projection.get("Params") or []
    if projection.get("Name") != "FisheyeRadTanThinPrism" or len(numbers) != PARAMETERS:
        raise InputError(
            f"{where}: expected {COLOUR} as FisheyeRadTanThinPrism with {PARAMETERS} numbers, "
            f"found {projection.get('Name')} with {len(numbers)}. Take the recording's own "
            "calibration."
        )
    return [float(number) for number in numbers]


def _colour_camera(calibration: Any, where: str) -> dict[str, Any]:
    cameras = calibration.get("CameraCalibrations") if isinstance(calibration, dict) else None
    for camera in cameras or []:
        if isinstance(camera, dict) and camera.get("Label") == COLOUR:
            return camera
    raise InputError(
        f"{where}: expected 'CameraCalibrations' with '{COLOUR}', found none. Take the JSON that "
        "the recording carries as its tag calib_json."
    )
