"""Speed, memory and truth of video runs.

    python benchmarks/video.py speed walk.mp4 --boxes walk_boxes.json   # frames/s, share of stages
    python benchmarks/video.py memory                                   # peak at 100, 2000 frames
    python benchmarks/video.py truth walk1.mp4 walk2.mp4 walk3.mp4      # scores, before and after

``speed`` runs the shipped body model. ``memory`` runs every stage but the network, whose place a
sphere that follows the frame takes, on frames of 96 x 64 pixels, each length in a process of its
own. ``truth`` wants videos of ``examples/make_video.py`` with their ``_truth.npz`` beside them: the
true boxes, moved by 4 % of their size, missing 10 % of the time and wrong in 5 % of the frames, go
through the tracker and the shipped body model.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import torch
import trimesh

import kinemesh
from _measure import machine
from kinemesh.cli.video import VideoOptions, predict_video
from kinemesh.data.synthetic.videos import detections_of
from kinemesh.files import write_json
from kinemesh.inference.boxes import Box
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.refinement import OnlineRefiner, TrackSizes, refine_offline
from kinemesh.inference.smoothing import OfflineSmoothing
from kinemesh.inference.tracking import Tracker, box_overlap
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from kinemesh.inference.video_run import one_by_one
from kinemesh.inference.video_source import FileSource
from kinemesh.metrics import mpjpe_mm, pa_mpjpe_mm
from kinemesh.motion_metrics import (
    acceleration_error_mm,
    identity_switches,
    jitter_m_s3,
    match_frames,
)
from kinemesh.skeletons import COCO17

TINY = (96, 64)
LENGTHS = (100, 2000)
SEEN = 1 / 3  # of somebody, to count in the scores


def speed(options: argparse.Namespace) -> dict[str, object]:
    model = kinemesh.load("body", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        predict_video(
            str(options.video[0]),
            VideoOptions(max_frames=options.max_frames),
            find=model.predict_many,
            out=Path(folder),
            boxes=options.boxes,
        )
    return {"seconds": time.perf_counter() - start}


def memory(options: argparse.Namespace) -> dict[str, object]:
    peaks = {}
    for length in options.lengths:
        start = time.perf_counter()
        # one thread: two that wait for one another on busy cores take a hundred times as long
        command = [sys.executable, __file__, "one-memory", "--lengths", str(length)]
        command += ["--threads", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[length] = float(done.stdout.split()[-1])
        seconds = time.perf_counter() - start
        print(f"{length} frames: peak {peaks[length]:.0f} MiB, {seconds:.0f} s", flush=True)
    return {"peak_mib": peaks}


def one_memory(options: argparse.Namespace) -> None:
    """Peak of a whole run over a tiny video of one length, MiB, on the last line."""
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.3)
    faces = np.asarray(ball.faces, np.int64)
    vertices = np.asarray(ball.vertices, np.float32)

    def find(photo: LoadedImage, boxes: object) -> list[Person]:
        camera = PhotoCamera(100.0, (TINY[0] / 2, TINY[1] / 2), TINY)
        x = float(photo.pixels[0, 0, 0]) / 255 - 0.5  # the colour of the frame says where it is
        points = vertices + np.array([x, 0.0, 2.0], np.float32)
        joints = points[:17]
        pixels = camera.project(joints).astype(np.float32)
        box = (10.0, 5.0, 60.0, 50.0)
        sure = np.ones(17, np.float32)
        return [Person(points, faces, joints, pixels, sure, "coco17", box, None, 0.9, camera)]

    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "tiny.mp4"
        write_tiny(video, options.lengths[0])
        predict_video(str(video), VideoOptions(), find=one_by_one(find), out=Path(folder) / "out")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def write_tiny(path: Path, frames: int) -> None:
    """Frames of one colour that changes slowly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height = TINY
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            grey = int(127 + 100 * np.sin(index / 30))
            pixels = np.full((TINY[1], TINY[0], 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True)
class Follow:
    """A video as it was found, frame by frame, with its truth."""

    frames: Sequence[VideoFrame]
    truth: Mapping[str, np.ndarray]
    rate: float


def follow(model: kinemesh.Predictor, path: Path, seed: int) -> Follow:
    source = FileSource(path)
    with np.load(path.with_name(f"{path.stem}_truth.npz")) as file:
        truth = {name: file[name] for name in ("boxes_px", "seen", "joints", "focal_px")}
    rng, tracker, frames = np.random.default_rng(seed), Tracker(), []
    for shown in source.frames():
        assert shown.photo is not None  # all frames were asked for
        index = shown.index
        known = SimpleNamespace(
            picture=shown.photo.pixels, boxes_px=truth["boxes_px"][index], seen=truth["seen"][index]
        )
        rows = detections_of(known, rng, false_alarms=0.05)
        boxes = [Box(*row[:4].tolist(), score=float(row[4])) for row in rows]
        people = model.predict(shown.photo, boxes, focal_px=float(truth["focal_px"]))
        numbers = tracker.update(people, shown.time_s)
        found = tuple(
            TrackedPerson(n, p) for n, p in zip(numbers, people, strict=True) if n is not None
        )
        frames.append(VideoFrame(index, shown.time_s, source.image_size, found))
    assert source.frame_rate is not None  # a file of make_video.py says it
    return Follow(frames, truth, source.frame_rate)


def matches_of(run: Follow, frames: Sequence[VideoFrame]) -> list[dict[int, int]]:
    """Track of each true person, by the overlap of the boxes that the network was given."""
    similarity = []
    for frame in frames:
        truths = [Box(*box.tolist()) for box in run.truth["boxes_px"][frame.index]]
        seen = run.truth["seen"][frame.index] > SEEN
        similarity.append(
            {
                (k, found.track): box_overlap(true, Box(*found.person.box_px))
                for k, true in enumerate(truths)
                for found in frame.people
                if seen[k]
            }
        )
    return match_frames(similarity)


def pieces(
    run: Follow, frames: Sequence[VideoFrame], matches: Sequence[Mapping[int, int]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Predicted and true joints (T, 17, 3) of each unbroken stretch of a true person."""
    for person in range(run.truth["seen"].shape[1]):
        own, true = [], []
        for frame, match in zip([*frames, None], [*matches, {}], strict=True):
            found = frame and person in match and frame.of_track(match[person])
            if found:
                own.append(found.person.joints)
                true.append(run.truth["joints"][frame.index, person])
            elif own:
                yield torch.from_numpy(np.stack(own)), torch.from_numpy(np.stack(true))
                own, true = [], []


def scores(
    run: Follow, frames: Sequence[VideoFrame], matches: Sequence[Mapping[int, int]]
) -> dict[str, float]:
    root = COCO17.root_indices()
    parts = list(pieces(run, frames, matches))
    columns = {
        "PA-MPJPE": [pa_mpjpe_mm(own, true) for own, true in parts],
        "MPJPE": [mpjpe_mm(own, true, root) for own, true in parts],
        "place": [mpjpe_mm(own, true) for own, true in parts],
        "acceleration": [acceleration_error_mm(own, true, root) for own, true in parts],
        "acceleration in camera": [acceleration_error_mm(own, true) for own, true in parts],
        "jitter": [jitter_m_s3(own, run.rate, root) for own, _ in parts],
        "true jitter": [jitter_m_s3(true, run.rate, root) for _, true in parts],
    }
    return {name: float(torch.cat(values).mean()) for name, values in columns.items()}


def variants(run: Follow) -> Iterator[tuple[str, list[VideoFrame]]]:
    yield "as found", list(run.frames)
    sizes = TrackSizes()
    for frame in run.frames:
        sizes.add(frame)
    for kind, strength in (("none", 0.0), ("gaussian", 0.5), ("gaussian", 1.0), ("savgol", 0.5)):
        made = refine_offline(
            run.frames.__getitem__,
            len(run.frames),
            run.rate,
            sizes.lasting(),
            OfflineSmoothing(kind, strength),
        )
        yield ("one size, gaps filled" if kind == "none" else f"{kind} {strength}"), list(made)
    refiner = OnlineRefiner(0.5)
    yield "One-Euro 0.5", [refiner.refine(frame) for frame in run.frames]


def truth(options: argparse.Namespace) -> dict[str, object]:
    model = kinemesh.load("body", "cpu")
    assert isinstance(model, kinemesh.Predictor)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed, path in enumerate(options.video):
        run = follow(model, path, seed)
        # the same stretches are scored before and after: frames where the person was found
        matches = matches_of(run, run.frames)
        switches, people = identity_switches(matches), run.truth["seen"].shape[1]
        tracks = len({found.track for frame in run.frames for found in frame.people})
        found = sum(len(match) for match in matches)
        print(
            f"{path.name}: {switches} identity switches, {tracks} tracks of {people} people, "
            f"{found} of {int((run.truth['seen'] > SEEN).sum())} found",
            flush=True,
        )
        for name, frames in variants(run):
            rows.setdefault(name, []).append(scores(run, frames, matches))
    means = {
        name: {key: float(np.mean([row[key] for row in of_videos])) for key in of_videos[0]}
        for name, of_videos in rows.items()
    }
    print(f"{'':24}" + "".join(f"{key:>24}" for key in next(iter(means.values()))))
    for name, row in means.items():
        print(f"{name:24}" + "".join(f"{value:24.2f}" for value in row.values()))
    return {"scores": means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory", "truth", "one-memory"])
    parser.add_argument("video", type=Path, nargs="*")
    parser.add_argument("--boxes")
    parser.add_argument("--max-frames", type=int, default=100)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "one-memory":
        one_memory(options)
        return
    record = {"speed": speed, "memory": memory, "truth": truth}[options.what](options)
    if options.out is not None:
        write_json(options.out, {"machine": machine(), "what": options.what} | record)


if __name__ == "__main__":
    main()
