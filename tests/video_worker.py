"""Runs a video with a network that knows the answer, and kills itself on the way where it is told.

python -m tests.video_worker VIDEO OUT offline|online [find|draw|write NUMBER]
"""

import os
import signal
import sys
from pathlib import Path

from kinemesh.formats.frames import FramesHeader
from kinemesh.formats.video_results import VideoResults
from kinemesh.inference.smoothing import OfflineSmoothing
from kinemesh.inference.video_run import RunRule, VideoReport, VideoRun, one_by_one
from kinemesh.inference.video_source import FileSource
from tests.fake_predictor import fake_predictor


def die_at(function, count):
    """A function that takes the process down, without any word, when it is called once more."""

    def counted(*arguments):
        counted.left -= 1
        if counted.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    counted.left = count
    return counted


def run(video: Path, out: Path, mode: str, *, resume: bool = False, kill=None) -> VideoReport:
    source = FileSource(video)
    offline = OfflineSmoothing("gaussian", 0.5) if mode == "offline" else None
    header = FramesHeader(str(video), source.image_size, source.frame_rate)
    results = VideoResults(
        out, source.stem, header, {}, {"mode": mode}, resume=resume, sound=video, part_frames=5
    )
    predict = fake_predictor("body").predict
    if kill and kill[0] == "find":
        predict = die_at(predict, kill[1])
    if kill and kill[0] == "draw":
        results.overlay.draw = die_at(results.overlay.draw, kill[1])
    if kill and kill[0] == "write":
        results.write = die_at(results.write, kill[1])
    report = VideoRun(source, one_by_one(predict), results, RunRule(offline=offline)).run()
    results.close(finished=True)
    return report


if __name__ == "__main__":
    path, folder, mode, *kill = sys.argv[1:]
    run(Path(path), Path(folder), mode, kill=(kill[0], int(kill[1])) if kill else None)
