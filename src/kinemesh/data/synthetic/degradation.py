"""From linear light to the file of a cheap camera: exposure, white balance, blur, noise, JPEG."""

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # (H, W, 3)


def develop(rng: np.random.Generator, linear: Image) -> Image:
    """Expose, white-balance and gamma-encode linear light.

    A camera meters the scene, so most of the brightness of the picture is normalised away; what is
    left over varies by about a stop.

    Args:
        rng: The only source of chance.
        linear: (H, W, 3) float32 linear light, not negative.

    Returns:
        (H, W, 3) float32 in [0, 1], sRGB-like.
    """
    mean = max(float(linear.mean()), 1e-3)
    metered = (0.24 / mean) ** rng.uniform(0.3, 0.9)
    exposure = metered * np.exp(rng.normal(0.0, 0.4))
    balance = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0, 0.08) * np.array([1.0, 0.0, -1.0]))
    gain = (exposure * balance).astype(np.float32)
    gamma = 1.0 / np.clip(rng.normal(2.2, 0.2), 1.6, 2.8)
    # Extended Reinhard curve: bright light rolls off until it clips at the white point.
    white = np.float32(rng.uniform(1.0, 2.5))
    light = linear * gain
    rolled = light * (1 + light / white**2) / (1 + light)
    return _grade(rng, cast(Image, cv2.pow(np.clip(rolled, 0, 1), gamma)))


def degrade(rng: np.random.Generator, image: Image) -> Image:
    """Blur, resample, add sensor noise and compress.

    Args:
        rng: The only source of chance.
        image: (H, W, 3) float32 in [0, 1].

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    image = _soften(rng, image)
    if rng.random() < 0.3:
        image = _add_noise(rng, image)
    image = np.clip(image, 0.0, 1.0)
    if rng.random() < 0.3:
        image = _compress(image, int(rng.integers(25, 92)))
    return image


def _grade(rng: np.random.Generator, image: Image) -> Image:
    """Contrast about mid-grey and saturation, as a camera's picture style sets them."""
    contrast = np.float32(np.exp(rng.normal(0.2, 0.2)))
    image = (image - 0.5) * contrast + np.float32(0.5 + rng.normal(0, 0.03))
    chance = rng.random()
    if chance < 0.35:
        saturation = np.float32(0.0 if chance < 0.03 else np.exp(rng.normal(-0.1, 0.3)))
        grey = image @ np.array([[0.3], [0.59], [0.11]], dtype=np.float32)
        image = grey + (image - grey) * saturation
    return image


def _soften(rng: np.random.Generator, image: Image) -> Image:
    size = len(image)
    kind = rng.random()
    if kind < 0.17:
        sigma = np.exp(rng.uniform(np.log(0.3), np.log(1.8))) * size / 128
        return cast(Image, cv2.GaussianBlur(image, (0, 0), sigma))
    if kind < 0.23:
        return _motion_blur(rng, image)
    if kind < 0.43:
        share, full = rng.uniform(0.3, 0.8), image.shape[1::-1]
        small = tuple(max(8, int(side * share)) for side in full)
        reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        way = cv2.INTER_LINEAR if rng.random() < 0.6 else cv2.INTER_CUBIC
        return cast(Image, cv2.resize(reduced, full, interpolation=way))
    if kind < 0.6:
        blurred = cv2.GaussianBlur(image, (0, 0), size / 128)
        return cast(Image, image + np.float32(rng.uniform(0.2, 1.2)) * (image - blurred))
    return image


def _motion_blur(rng: np.random.Generator, image: Image) -> Image:
    length = rng.uniform(2, 7) * len(image) / 128
    angle = rng.uniform(0, np.pi)
    side = int(length) | 1
    kernel = np.zeros((side, side), dtype=np.float32)
    middle = side // 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    start, end = np.round(middle - reach).astype(int), np.round(middle + reach).astype(int)
    cv2.line(kernel, start.tolist(), end.tolist(), 1.0, 1)
    return cast(Image, cv2.filter2D(image, -1, kernel / kernel.sum()))


def _add_noise(rng: np.random.Generator, image: Image) -> Image:
    """Shot noise that grows with the signal, read noise that does not; sometimes in blotches."""
    height, width = image.shape[:2]
    grain = 1 if rng.random() < 0.6 else 2
    shape = (-(-height // grain), -(-width // grain), 3)
    noise: Image = rng.standard_normal(shape, dtype=np.float32)
    if grain > 1:
        grown = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        noise = cast(Image, grown)
    if rng.random() < 0.4:
        noise = noise[..., :1]
    read, shot = rng.uniform(0.0, 0.02), rng.uniform(0.0, 0.04)
    level = np.float32(read) + np.float32(shot) * np.sqrt(np.clip(image, 0, 1))
    return image + noise * level


def _compress(image: Image, quality: int) -> Image:
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, encoded = cv2.imencode(".jpg", (image * 255 + 0.5).astype(np.uint8), flags)
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.float32)
    return decoded * np.float32(1 / 255)
