"""Render a video of people who walk past one another, with sound and with the truth beside it.

    python examples/make_video.py out/walk.mp4 --frames 60 --people 2

Beside the video are written ``walk_truth.npz`` with the people's true joints and boxes in every
frame, and for ``kinemesh predict --boxes`` ``walk_boxes.json`` with the boxes of the first frame
and ``walk_all_boxes.json`` with those of each.
"""

import argparse
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from kinemesh.data.synthetic.videos import SyntheticVideo
from kinemesh.files import atomic_path, write_bytes

SOUND_RATE = 44100


def write_video(path: Path, video: SyntheticVideo) -> dict[str, np.ndarray]:
    """Encode the frames and a rising tone; returns the truth of all frames."""
    truth: dict[str, list[np.ndarray]] = {}
    with atomic_path(path) as target, av.open(str(target), "w", format="mp4") as container:
        rate = Fraction(video.frame_rate).limit_denominator(1000)
        pictures = container.add_stream("libx264", rate=rate)
        pictures.width, pictures.height = video.size
        pictures.pix_fmt, pictures.options = "yuv420p", {"crf": "16"}
        sound = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for frame in video:
            image = av.VideoFrame.from_ndarray(frame.picture, format="rgb24")
            container.mux(pictures.encode(image))
            for name in ("boxes_px", "seen", "joints", "joints_px", "vertices"):
                truth.setdefault(name, []).append(getattr(frame, name))
        container.mux(pictures.encode())
        container.mux(
            packet
            for chunk in tone(len(video) / video.frame_rate)
            for packet in sound.encode(chunk)
        )
        container.mux(sound.encode())
    return {name: np.stack(values) for name, values in truth.items()}


def tone(seconds: float) -> list[av.AudioFrame]:
    """A tone that rises from 220 to 440 Hz."""
    time = np.arange(int(seconds * SOUND_RATE)) / SOUND_RATE
    wave = 0.2 * np.sin(2 * np.pi * (220 * time + 110 / seconds * time**2))
    frames = []
    for start in range(0, len(wave), 1024):
        samples = wave[None, start : start + 1024].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SOUND_RATE, start
        frame.time_base = Fraction(1, SOUND_RATE)
        frames.append(frame)
    return frames


def main() -> None:
    """Read the options and render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--frames", type=int, default=90)
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("W", "H"))
    parser.add_argument("--frame-rate", type=float, default=30.0)
    options = parser.parse_args()
    size = (options.size[0], options.size[1])
    video = SyntheticVideo(options.seed, options.frames, size, options.people, options.frame_rate)
    options.path.parent.mkdir(parents=True, exist_ok=True)
    truth = write_video(options.path, video)
    stem = options.path.with_suffix("")
    with atomic_path(f"{stem}_truth.npz") as target:
        np.savez_compressed(target, times_s=video.times_s, focal_px=video.focal_px, **truth)
    boxes = truth["boxes_px"].round(1).tolist()
    write_bytes(f"{stem}_boxes.json", json.dumps(boxes[0]).encode())
    write_bytes(f"{stem}_all_boxes.json", json.dumps(dict(enumerate(boxes))).encode())
    print(options.path)


if __name__ == "__main__":
    main()
