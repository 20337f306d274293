"""Filters over time: One-Euro while frames come, Gaussian or Savitzky-Golay once all are there."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import savgol_filter

from kinemesh.errors import InputError
from kinemesh.inference.motion_state import MotionState

Array = NDArray[np.float64]
OfflineFilter = Literal["gaussian", "savgol", "none"]

FULL_SIGMA_S = 0.1
"""Sigma of the Gaussian at strength 1."""
DEPTH_FACTOR = 3.0
"""The depth is smoothed over a time this much longer."""
POLYNOMIAL = 2
"""Degree of the polynomials of Savitzky and Golay."""
SAVGOL_REACH = 2.4
"""Half the window of Savitzky-Golay in sigmas: it then takes away about as much noise."""


@dataclass(frozen=True)
class OfflineSmoothing:
    """A filter that sees the frames before and after.

    Attributes:
        kind: "gaussian", "savgol" (Savitzky and Golay 1964) or "none".
        strength: 0 for none to 1.

    Raises:
        InputError: One of them is unknown or out of range.
    """

    kind: OfflineFilter = "gaussian"
    strength: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(OfflineFilter):
            known = ", ".join(get_args(OfflineFilter))
            raise InputError(f"Offline smoothing is one of {known}, found {self.kind!r}.")
        check_strength(self.strength)

    def reach(self, frame_rate: float) -> int:
        """How many frames before and after one have a say in it, also near the end of a track."""
        sigma = DEPTH_FACTOR * self._sigma(frame_rate)
        return 2 * max(_gaussian_radius(sigma), _savgol_radius(sigma)) if self._acts else 0

    def smooth(self, state: MotionState, frame_rate: float) -> MotionState:
        """Smooth T frames that follow one another; boxes and scores stay.

        Args:
            state: The frames.
            frame_rate: Frames a second.
        """
        if not self._acts or len(state) < 2:
            return state
        sigma = self._sigma(frame_rate)
        sideways = self._filter(state.place[:, :2], sigma)
        depth = self._filter(state.place[:, 2:], DEPTH_FACTOR * sigma)
        return replace(
            state,
            place=np.concatenate([sideways, depth], axis=1),
            local=self._filter(state.local, sigma),
            turns=self._filter(state.turns, sigma),
            joints_px=self._filter(state.joints_px, sigma),
        )

    @property
    def _acts(self) -> bool:
        return self.kind != "none" and self.strength > 0

    def _sigma(self, frame_rate: float) -> float:
        return self.strength * FULL_SIGMA_S * frame_rate

    def _filter(self, values: Array, sigma: float) -> Array:
        return _gaussian(values, sigma) if self.kind == "gaussian" else _savgol(values, sigma)


class OneEuro:
    """The One-Euro filter of an array: a low-pass whose cutoff grows with the speed.

    With ``alpha(f) = 1 / (1 + 1 / (2 pi f dt))`` the speed is low-passed with ``speed_cutoff`` and
    the value with ``cutoff + speed_gain * |speed|`` (Casiez, Roussel and Vogel 2012). The speed of
    a point is the norm over its last axis.

    Args:
        cutoff: Hertz, of something that stands still.
        speed_gain: Hertz for each unit a second.
        speed_cutoff: Hertz.
    """

    def __init__(self, cutoff: float, speed_gain: float, speed_cutoff: float = 1.0) -> None:
        self.cutoff, self.speed_gain, self.speed_cutoff = cutoff, speed_gain, speed_cutoff
        self._value: Array | None = None
        self._speed: Array | None = None

    def __call__(self, value: Array, seconds: float) -> Array:
        """The filtered value, ``seconds`` after the one before."""
        if self._value is None or self._speed is None or seconds <= 0:
            self._value, self._speed = value, np.zeros_like(value)
            return value
        change = (value - self._value) / seconds
        self._speed = self._speed + _alpha(self.speed_cutoff, seconds) * (change - self._speed)
        speed = np.linalg.norm(self._speed, axis=-1, keepdims=True)
        alpha = _alpha(self.cutoff + self.speed_gain * speed, seconds)
        self._value = self._value + alpha * (value - self._value)
        return self._value


class OnlineSmoothing:
    """One-Euro filters for one track.

    Args:
        strength: 0 for none to 1.

    Raises:
        InputError: The strength is out of range.
    """

    CUTOFF = 1.0
    """Hertz at strength 1, of somebody who stands still."""
    SPEED_GAIN = 4.0
    """Hertz for each body part that moves by a metre a second."""

    def __init__(self, strength: float = 0.5) -> None:
        check_strength(strength)
        self.strength = strength
        if strength > 0:
            cutoff = self.CUTOFF / strength
            gain = self.SPEED_GAIN / strength
            # sideways and pixels are taken to about a metre: a tan of 0.2, a box's height
            self._sideways = OneEuro(cutoff, gain * 5)
            self._depth = OneEuro(cutoff / DEPTH_FACTOR, gain)
            self._local = OneEuro(cutoff, gain)
            self._turns = OneEuro(cutoff, gain / 2)  # half a metre from joint to joint
            self._pixels = OneEuro(cutoff, gain)

    def __call__(self, state: MotionState, seconds: float) -> MotionState:
        """Smooth the next frame (T = 1), ``seconds`` after the last; boxes and scores stay."""
        if self.strength == 0:
            return state
        size = max(float(state.box_px[0, 2:].max()), 1.0)
        sideways = self._sideways(state.place[:, :2], seconds)
        depth = self._depth(state.place[:, 2:], seconds)
        unit = 1.7 / size  # about metres for one pixel of a standing person
        pixels = self._pixels(state.joints_px * unit, seconds) / unit
        return replace(
            state,
            place=np.concatenate([sideways, depth], axis=1),
            local=self._local(state.local, seconds),
            turns=self._turns(state.turns, seconds),
            joints_px=pixels,
        )


def check_strength(strength: float) -> None:
    """Refuse a strength of smoothing outside 0..1.

    Raises:
        InputError: It is.
    """
    if not (math.isfinite(strength) and 0 <= strength <= 1):
        raise InputError(f"The strength of smoothing is a number from 0 to 1, found {strength}.")


def _gaussian_radius(sigma: float) -> int:
    return math.ceil(3 * sigma)


def _savgol_radius(sigma: float) -> int:
    return math.ceil(SAVGOL_REACH * sigma)


def _gaussian(values: Array, sigma: float) -> Array:
    radius = _gaussian_radius(sigma)
    if values.size == 0 or sigma < 0.2:  # all weight lies on the frame itself
        return values
    # mirrored through the end points, so that somebody who walks is not held back at the ends
    widths = [(radius, radius)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(values, widths, mode="reflect", reflect_type="odd")
    filtered = gaussian_filter1d(padded, sigma, axis=0, mode="nearest", radius=radius)
    return np.asarray(filtered[radius : radius + len(values)])


def _savgol(values: Array, sigma: float) -> Array:
    window = min(2 * _savgol_radius(sigma) + 1, len(values) - 1 + len(values) % 2)
    if values.size == 0 or window <= POLYNOMIAL + 1:
        return values
    return np.asarray(savgol_filter(values, window, POLYNOMIAL, axis=0, mode="interp"))


def _alpha(cutoff: float | Array, seconds: float) -> float | Array:
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))
