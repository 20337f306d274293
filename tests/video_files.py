"""Tiny videos with a red spot that moves, which the fake network of `fake_predictor` follows."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.fake_predictor import spot_photo

WIDTH, HEIGHT, RATE = 128, 96, 25


def spot_x(index: int) -> int:
    """Where the spot of a frame is."""
    return 40 + 2 * index


def spot_frames(count: int) -> list[np.ndarray]:
    return [spot_photo(WIDTH, HEIGHT, spot_x(index), 48) for index in range(count)]


def write_video(
    path: Path,
    frames: list[np.ndarray],
    times_s: list[float] | None = None,
    sound: str | None = None,
    coder: str = "libx264",
) -> Path:
    """Encode frames, evenly spaced unless times are given, with a second of sound or more."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(coder, rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": "12", "bf": "0"} if coder == "libx264" else {"qscale": "2"}
        track = container.add_stream(sound, rate=8000, layout="mono") if sound else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            seconds = index / RATE if times_s is None else times_s[index]
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            for start in range(0, 24000, 800):
                wave = np.sin(np.arange(start, start + 800) * 0.2)[None] * 0.3
                chunk = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16), "s16", "mono")
                chunk.sample_rate, chunk.pts = 8000, start
                container.mux(track.encode(chunk))
            container.mux(track.encode())
    return path


def decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Pictures and times of a video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames]
