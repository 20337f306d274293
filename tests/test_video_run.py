"""Whole runs over tiny videos: what is found, written and drawn; killed runs that go on."""

import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kinemesh.cli._video_exports import write_video_exports
from kinemesh.cli.video import VideoOptions, is_video, predict_video
from kinemesh.errors import InputError, KinemeshError
from kinemesh.formats.frames import FrameArrays, FramesFile, FramesHeader, FramesWriter
from kinemesh.formats.video import draw_frame
from kinemesh.inference.boxes import Box
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.pipeline import StageClock, in_thread
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from kinemesh.inference.video_run import RunRule, VideoRun, one_by_one
from kinemesh.inference.video_source import DamagedVideoError, FileSource, SourceFrame
from tests.fake_predictor import fake_people, fake_predictor
from tests.test_tracking import LAYOUT, person_at
from tests.video_files import HEIGHT, RATE, WIDTH, decode, spot_frames, spot_x, write_video
from tests.video_worker import run as run_worker

FRAMES = 12


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    return write_video(path, spot_frames(FRAMES), sound="aac")


def find(photo, boxes):
    return fake_predictor("body").predict(photo, boxes)


def predict(video, out, **options):
    keywords = {
        name: options.pop(name) for name in ("boxes", "detect", "overlay") if name in options
    }
    settings = VideoOptions(**options)
    return predict_video(str(video), settings, find=one_by_one(find), out=out, **keywords)


def assert_same(first, second):
    one, two = FramesFile.find(first), FramesFile.find(second)
    assert one.path.read_bytes() == two.path.read_bytes()
    for a, b in zip(one, two, strict=True):
        assert [p.track for p in a.people] == [p.track for p in b.people]
        for p, q in zip(a.people, b.people, strict=True):
            for name in ("vertices", "joints", "joints_px", "joint_confidence"):
                np.testing.assert_array_equal(getattr(p.person, name), getattr(q.person, name))
    (pictures, times), (others, other_times) = decode(one.overlay), decode(two.overlay)
    np.testing.assert_array_equal(pictures, others)
    assert times == other_times


def test_a_video_from_end_to_end(video, tmp_path, capsys):
    table = {str(i): [[spot_x(i) - 20, 28, 40, 40]] for i in range(FRAMES)}
    (tmp_path / "boxes.json").write_text(json.dumps(table), "utf-8")
    assert predict(video, tmp_path, smooth=0.2, boxes=str(tmp_path / "boxes.json")) == 0
    found = FramesFile.find(tmp_path)
    assert (len(found), found.tracks, found.header.image_size) == (FRAMES, (1,), (WIDTH, HEIGHT))
    assert found.times_s == pytest.approx(np.arange(FRAMES) / RATE)
    middles = [frame.people[0].person.joints_px[:, 0].mean() for frame in found]
    offset = middles[5] - spot_x(5)
    assert middles == pytest.approx([spot_x(i) + offset for i in range(FRAMES)], abs=1.5)
    pictures, times = decode(found.overlay)
    assert times == pytest.approx([i / RATE for i in range(FRAMES)], abs=1e-3)
    assert np.abs(pictures[5].astype(int) - spot_frames(6)[5]).max() > 60  # a mesh was drawn
    with av.open(str(found.overlay)) as container:
        (sound,) = container.streams.audio
        assert sound.codec_context.name == "aac"
        assert float(sound.duration * sound.time_base) == pytest.approx(FRAMES / RATE, abs=0.2)
    shown = capsys.readouterr().out
    assert f"{FRAMES} frames in" in shown
    assert all(stage in shown for stage in ("decode", "network", "refine", "draw", "encode"))
    left = {path.name for path in (tmp_path / "walk_frames").iterdir()}
    assert left == {"run.json", *(f"{i:06d}.npz" for i in range(FRAMES))}


@pytest.mark.parametrize(
    ("mode", "kill"),
    [
        pytest.param("offline", ("find", 7), marks=pytest.mark.slow, id="finding"),
        pytest.param("offline", ("draw", 8), marks=pytest.mark.slow, id="drawing"),
        pytest.param("online", ("write", 6), id="online"),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(video, tmp_path, mode, kill):
    command = [sys.executable, "-m", "tests.video_worker", str(video), str(tmp_path / "killed")]
    command += [mode, kill[0], str(kill[1])]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
    assert killed.returncode == -9
    raw = len(list((tmp_path / "killed" / "walk_frames" / "raw").glob("0*.npz")))
    assert raw >= (kill[1] if kill[0] != "draw" else FRAMES)
    report = run_worker(video, tmp_path / "killed", mode, resume=True)
    assert report.computed == FRAMES - raw
    run_worker(video, tmp_path / "whole", mode)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def broken(video, out):
    """Leave a run behind that could not go on."""

    def fail(photo, boxes):
        if len(list(out.glob("walk_frames/raw/*.npz"))) == 4:
            raise KinemeshError("the network fell over")
        return find(photo, boxes)

    with pytest.raises(KinemeshError, match="fell over"):
        predict_video(str(video), VideoOptions(), find=one_by_one(fail), out=out)


def test_another_video_of_the_same_name_does_not_go_on(video, tmp_path):
    out, boxes = tmp_path / "out", tmp_path / "boxes.json"
    other = write_video(tmp_path / video.name, spot_frames(FRAMES - 2))
    broken(video, out)
    with pytest.raises(InputError, match="contents of the source"):
        predict(other, out, resume=True)
    boxes.write_text("[[10, 10, 40, 60]]")
    assert predict(video, tmp_path / "new", boxes=str(boxes)) == 0
    boxes.write_text("[[12, 10, 40, 60]]")
    with pytest.raises(InputError, match="contents of the boxes"):
        predict(video, tmp_path / "new", boxes=str(boxes), resume=True)


def test_boxes_of_no_frame_are_refused(video, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"x.png": [[10, 10, 40, 60]]}')
    with pytest.raises(InputError, match=r"frames by number.*found 'x\.png'"):
        predict(video, tmp_path, boxes=str(boxes))


def test_with_nobody_the_tables_are_written_all_the_same(video, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"0": []}')
    assert predict(video, tmp_path, boxes=str(boxes)) == 0
    write_video_exports(str(video), tmp_path, ("csv", "bvh", "coco"), None)
    assert "Nobody is in any frame: no bvh" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("walk_*.*")} >= {
        "walk_joints.csv",
        "walk_coco.json",
    }


def test_an_unfinished_run_is_not_thrown_away(video, tmp_path, capsys):
    broken(video, tmp_path)
    with pytest.raises(InputError, match="--resume"):
        predict(video, tmp_path)
    with pytest.raises(InputError, match="every = 1, now it is 2"):
        predict(video, tmp_path, resume=True, every=2)
    assert predict(video, tmp_path, resume=True, smooth=0.9) == 0
    assert len(FramesFile.find(tmp_path)) == FRAMES
    capsys.readouterr()
    assert predict(video, tmp_path, resume=True, smooth=0.9) == 0
    assert "Nothing left to do" in capsys.readouterr().out
    assert predict(video, tmp_path, max_frames=3) == 0  # a finished one may be replaced
    assert len(FramesFile.find(tmp_path)) == 3


def content_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fails_at_once(photo, boxes):
    raise InputError("this frame is not usable")


@pytest.mark.parametrize("smoothing", ["gaussian", "none"])
def test_what_fails_before_the_first_frame_costs_no_results(video, tmp_path, smoothing):
    def refused():
        with pytest.raises(InputError, match="outside the image"):
            predict(video, tmp_path / "out", boxes="4000,4000,10,10", offline_smoothing=smoothing)
        options = VideoOptions(offline_smoothing=smoothing)
        with pytest.raises(InputError, match="not usable"):
            predict_video(str(video), options, find=one_by_one(fails_at_once), out=tmp_path / "out")

    refused()
    assert not (tmp_path / "out").exists()
    assert predict(video, tmp_path / "out", max_frames=3) == 0
    before = content_of(tmp_path / "out")
    refused()
    assert content_of(tmp_path / "out") == before
    assert predict(video, tmp_path / "out", boxes="20,28,40,40", every=2) == 0  # not in the way
    assert FramesFile.find(tmp_path / "out").indices == tuple(range(0, FRAMES, 2))
    left = {path.name for path in (tmp_path / "out" / "walk_frames").iterdir()}
    assert left == {"run.json", *(f"{i:06d}.npz" for i in range(0, FRAMES, 2))}


class Numbers:
    """Frames without a picture to speak of; their number stands in the first pixel."""

    name = stem = "numbers"
    image_size = (640, 480)
    frame_rate, is_live = 25.0, False

    def __init__(self, count):
        self.frame_count = count

    def frames(self, every=1, first=0):
        for index in range(0, self.frame_count, every):
            pixels = np.full((480, 640, 3), index, np.uint8)
            yield SourceFrame(index, index / 25, LoadedImage(pixels))


def test_two_who_are_followed_stay_two_when_they_cross(tmp_path):
    """Whoever stands in front is found in both boxes; the one behind is there again afterwards."""
    behind = LAYOUT[::-1].copy()

    def places(index):
        return 60 + 8.0 * index, 500 - 8.0 * index

    def find_in_front(photo, boxes):
        front, back = places(int(photo.pixels[0, 0, 0]))
        found = []
        for box in boxes:
            middle = box.x + box.width / 2 - 30
            slip = 0.2 * (middle - front)  # what is found depends on the crop a little
            sees_front = abs(middle - front) < 40 or abs(middle - front) < abs(middle - back)
            found.append(
                person_at(front + slip, 150) if sees_front else person_at(back, 150, layout=behind)
            )
        return found

    class Kept:
        overlay, finished = None, 0

        def __init__(self):
            self.journal, self.frames = FrameArrays(tmp_path), []

        def write(self, frame):
            self.frames.append(frame)

    results = Kept()
    start = tuple(Box(x, 150, 60, 160) for x in places(0))
    rule = RunRule(smooth=0.0)
    VideoRun(Numbers(50), one_by_one(find_in_front), results, rule, start=start).run()
    seen = [[p.track for p in frame.people if p.seen] for frame in results.frames]
    assert {len(tracks) for tracks in seen} == {1, 2}
    last = {p.track: p.person.joints_px[:, 0].min() for p in results.frames[-1].people}
    left = [x + 60 * LAYOUT[:, 0].min() for x in places(49)]
    assert last == pytest.approx(dict(enumerate(left, start=1)), abs=8)


def test_a_folder_that_is_not_ours_stays(video, tmp_path):
    (tmp_path / "walk_frames").mkdir()
    with pytest.raises(InputError, match="did not write"):
        predict(video, tmp_path)
    copy = tmp_path / "x_overlay.mp4"
    copy.write_bytes(video.read_bytes())
    (tmp_path / "x.mp4").symlink_to(copy)
    with pytest.raises(InputError, match="overwrite the video"):
        predict(tmp_path / "x.mp4", tmp_path)


def test_every_and_max_frames(video, tmp_path):
    assert predict(video, tmp_path, every=3, max_frames=3, overlay=False) == 0
    found = FramesFile.find(tmp_path)
    assert found.indices == (0, 3, 6)
    assert found.overlay is None
    assert found[2].index == 6


def test_boxes_to_begin_with_are_followed(video, tmp_path):
    asked = []

    def spy(photo, boxes):
        asked.append(boxes)
        return find(photo, boxes)

    options = VideoOptions(max_frames=4, offline_smoothing="none", smooth=0.0)
    predict_video(str(video), options, find=one_by_one(spy), out=tmp_path, boxes="20,28,40,40")
    assert asked[0] == (Box(20, 28, 40, 40),)
    assert all(len(boxes) == 1 for boxes in asked)
    middles = [boxes[0].x + boxes[0].width / 2 for boxes in asked[1:]]
    # 2 pixels a frame; the fake mesh has the size of its crop, so that its box changes a little
    assert np.diff(middles) == pytest.approx([2.0, 2.0], abs=1.5)


def test_boxes_of_each_frame(video, tmp_path):
    table = {str(i): [[spot_x(i) - 20, 28, 40, 40]] for i in range(FRAMES) if i not in (4, 5)}
    (tmp_path / "boxes.json").write_text(json.dumps(table), "utf-8")
    predict(video, tmp_path / "out", boxes=str(tmp_path / "boxes.json"))
    found = FramesFile.find(tmp_path / "out")
    assert found.tracks == (1,)
    assert [frame.people[0].seen for frame in found] == [i not in (4, 5) for i in range(FRAMES)]


def test_batches_do_not_change_what_is_found(video, tmp_path):
    def run(folder, size):
        sizes = []

        def find_all(photos, boxes):
            sizes.append(len(photos))
            return one_by_one(find)(photos, boxes)

        class Kept:
            overlay = None
            finished = 0

            def __init__(self):
                self.journal, self.frames = FrameArrays(folder), []

            def write(self, frame):
                self.frames.append(frame)

        results = Kept()
        rule = RunRule(batch_frames=size)
        boxes = (Box(10, 10, 100, 70),)
        VideoRun(FileSource(video), find_all, results, rule, lambda index, photo: boxes).run()
        return results.frames, sizes

    single, ones = run(tmp_path / "a", 1)
    batched, sizes = run(tmp_path / "b", 4)
    assert ones == [1] * FRAMES
    assert sizes == [1, 3, 4, 4]
    for a, b in zip(single, batched, strict=True):
        np.testing.assert_array_equal(a.people[0].person.vertices, b.people[0].person.vertices)


def test_damage_ends_the_run_early_and_keeps_the_rest(tmp_path, monkeypatch, capsys):
    path = write_video(tmp_path / "a.mp4", spot_frames(8))

    def decoded(self, container, stream):
        yield from itertools.islice(container.decode(stream), 5)
        raise DamagedVideoError("a.mp4 is damaged after frame 5")

    monkeypatch.setattr(FileSource, "_decoded", decoded)
    assert predict(path, tmp_path / "out") == 1
    assert "after frame 5" in capsys.readouterr().err
    assert len(FramesFile.find(tmp_path / "out")) == 5


@pytest.mark.parametrize("kept", [0, 60])  # bytes: without a header, and with one
def test_a_damaged_picture_of_a_folder_keeps_the_frames_before(tmp_path, capsys, kept):
    folder = tmp_path / "shots"
    folder.mkdir()
    for index, pixels in enumerate(spot_frames(5)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    damaged = folder / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    assert predict(folder, tmp_path / "out", frames=True) == 1
    assert re.search(r"frame 3: .*3\.png", capsys.readouterr().err)
    assert len(FramesFile.find(tmp_path / "out")) == 3
    first = folder / "0.png"
    first.write_bytes(first.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"0\.png"):
        predict(folder, tmp_path / "none", frames=True)
    assert not (tmp_path / "none").exists()


def test_sound_that_mp4_cannot_hold_is_converted(tmp_path):
    path = write_video(tmp_path / "a.avi", spot_frames(10), sound="pcm_s16le", coder="mpeg4")
    assert predict(path, tmp_path / "out") == 0
    with av.open(str(tmp_path / "out" / "a_overlay.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        samples = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert np.abs(np.concatenate(samples, axis=1)).max() > 0.1


def test_which_sources_are_videos(tmp_path):
    none = VideoOptions()
    assert is_video(["a.mp4"], none)
    assert is_video(["0"], none)
    assert not is_video(["a.jpg", "b.jpg"], none)
    assert is_video([str(tmp_path)], VideoOptions(frames=True))
    for sources, options, word in (
        (["a.mp4", "b.jpg"], none, "one video at a time"),
        (["a.jpg"], VideoOptions(frames=True), "--frames"),
        (["a.mp4"], VideoOptions(frames=True), "leave --frames out"),
        (["0"], VideoOptions(frames=True), "leave --frames out"),
        (["a.mp4"], VideoOptions(max_frames=0), "^--max-frames: expected .* found 0"),
        (["a.mp4"], VideoOptions(every=-1), "^--every: expected .* found -1"),
        (["a.mp4"], VideoOptions(smooth=2.0), "^--smooth: expected .* found 2"),
        (["a.jpg"], VideoOptions(every=2), "--every"),
        (["a.jpg"], VideoOptions(max_frames=2), "--max-frames"),
        (["a.jpg"], VideoOptions(smooth=0.5), "--smooth"),
        (["a.jpg"], VideoOptions(frame_rate=25.0), "--frame-rate"),
        (["a.mp4"], VideoOptions(frame_rate=25.0), "own times"),
        ([str(tmp_path)], VideoOptions(frames=True, frame_rate=0.0), "^--frame-rate: expected"),
    ):
        with pytest.raises(InputError, match=word):
            is_video(sources, options)


def test_options_that_a_camera_cannot_have():
    for options in (VideoOptions(offline_smoothing="savgol"), VideoOptions(resume=True)):
        with pytest.raises(InputError, match="camera"):
            predict_video("0", options, find=one_by_one(find))
    with pytest.raises(InputError, match="every"):
        RunRule(every=0)


def test_frames_come_back_with_hands_and_without_a_cut_line(tmp_path):
    body, hands = fake_people("body")[0], fake_people("hand")
    people = (TrackedPerson(3, body), *(TrackedPerson(i, h, i > 1) for i, h in enumerate(hands, 1)))
    frame = VideoFrame(7, 0.28, (300, 200), people)
    with FramesWriter(tmp_path, "a", FramesHeader("a.mp4", (300, 200), 25.0)) as writer:
        writer.write(frame)
        writer.write(replace(frame, index=8, people=()))
    path = tmp_path / "a_frames.jsonl"
    path.write_bytes(path.read_bytes() + b'{"frame": 9, "ti')
    found = FramesFile.find(tmp_path)
    assert found.indices == (7, 8)
    assert (found.tracks, found.positions_of(3)) == ((1, 2, 3), [0])
    for back, given in zip(found[0].people, people, strict=True):
        assert (back.track, back.seen, back.person.side) == (
            given.track,
            given.seen,
            given.person.side,
        )
        np.testing.assert_array_equal(back.person.vertices, given.person.vertices)
    (tmp_path / "b.jsonl").write_text('{"format": "else"}\n', "utf-8")
    with pytest.raises(InputError, match=r"kinemesh\.frames"):
        FramesFile(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="found none"):
        FramesFile.find(tmp_path / "a_frames")


def test_tracks_keep_their_colours():
    body = fake_people("body")[0]
    pixels = np.zeros((200, 300, 3), np.uint8)
    first, second = (
        draw_frame(pixels, VideoFrame(0, 0, (300, 200), (TrackedPerson(t, body),)), numbers=False)
        for t in (1, 2)
    )
    assert first.any()
    assert (first.any(-1) == second.any(-1)).mean() > 0.99
    assert np.abs(first.astype(int) - second).max() > 20


def test_thread_hands_errors_on_after_the_items_before():
    def items():
        yield 1
        raise KinemeshError("broken")

    running = in_thread(items())
    assert next(running) == 1
    with pytest.raises(KinemeshError, match="broken"):
        next(running)


def test_thread_is_closed_when_nobody_takes_any_more():
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    running = in_thread(items())
    assert [next(running) for _ in range(3)] == [0, 1, 2]
    running.close()
    assert closed == [True]


def test_stages_work_at_the_same_time():
    clock = StageClock()

    def slow(items, stage):
        for item in items:
            with clock.measure(stage):
                time.sleep(0.02)
            yield item

    start = time.perf_counter()
    assert list(in_thread(slow(in_thread(slow(iter(range(10)), "a")), "b"))) == list(range(10))
    passed = time.perf_counter() - start
    assert passed < 0.9 * sum(clock.seconds.values())
    assert sum(clock.shares().values()) == pytest.approx(1)
