"""Frames of files, folders and cameras: order, times, uprightness, and clear refusals."""

import itertools
import operator
from contextlib import suppress

import av
import cv2
import numpy as np
import pytest

from kinemesh.errors import InputError
from kinemesh.inference.video_source import (
    CameraSource,
    DamagedVideoError,
    FileSource,
    FolderSource,
    is_video_name,
    open_source,
)
from tests.video_files import HEIGHT, WIDTH, spot_frames, spot_x, write_video


def red_x(photo):
    red = photo.pixels[..., 0].astype(float) - photo.pixels[..., 1]
    return float((red.clip(60) - 60).sum(0) @ np.arange(photo.size[0]) / (red.clip(60) - 60).sum())


def test_file(tmp_path):
    source = open_source(write_video(tmp_path / "a.mp4", spot_frames(7)))
    assert (source.stem, source.image_size) == ("a", (WIDTH, HEIGHT))
    assert (source.frame_rate, source.frame_count, source.is_live) == (25.0, 7, False)
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(7))
    assert [frame.time_s for frame in frames] == pytest.approx([i / 25 for i in range(7)])
    for frame in frames:
        assert red_x(frame.photo) == pytest.approx(spot_x(frame.index) - 0.5, abs=0.7)


def test_every_nth_frame_and_pixels_from_some_frame_on(tmp_path):
    source = FileSource(write_video(tmp_path / "a.mp4", spot_frames(7)))
    frames = list(source.frames(every=3, first=3))
    assert [frame.index for frame in frames] == [0, 3, 6]
    assert [frame.photo is None for frame in frames] == [True, False, False]


def test_times_are_those_of_the_file(tmp_path):
    times = [0.5, 0.54, 0.6, 0.9]  # the first picture does not come at 0
    path = write_video(tmp_path / "a.mkv", spot_frames(4), times)
    found = [frame.time_s for frame in FileSource(path).frames()]
    assert found == pytest.approx([0.0, 0.04, 0.1, 0.4], abs=1e-3)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_of_the_file_is_applied(tmp_path, monkeypatch, quarters):
    upright = spot_frames(1)[0]
    path = write_video(tmp_path / "a.mp4", [np.ascontiguousarray(np.rot90(upright, -quarters))])
    turn_in_header(path, 90 * quarters)
    source = FileSource(path)
    assert source.image_size == (WIDTH, HEIGHT)
    (frame,) = source.frames()
    assert red_x(frame.photo) == pytest.approx(spot_x(0) - 0.5, abs=1.0)


def turn_in_header(path, degrees):
    """Write a display matrix, which a phone does, into the track header of an MP4 file."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0: up to the matrix
    one = 1 << 16
    cos, sin = {90: (0, -one), 180: (-one, 0), 270: (0, one)}[degrees]
    matrix = [cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30]
    content[start : start + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in matrix)
    path.write_bytes(content)


def test_truncated_file_gives_the_frames_before(tmp_path):
    path = write_video(tmp_path / "a.mkv", spot_frames(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = []
    with suppress(DamagedVideoError):  # some ends look like proper ends
        for frame in FileSource(path).frames():
            seen.append(frame.index)
    assert 0 < len(seen) < 60


def noise_video(path, coder, **options):
    """24 frames that take about the same number of bytes each; of mp4 with the index in front."""
    noise = np.random.default_rng(0)
    frames = [noise.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(24)]
    write_video(path, frames, coder=coder, **options)
    if path.suffix != ".mp4":
        return path
    front = path.with_name(f"front_{path.name}")
    with (
        av.open(str(path)) as source,
        av.open(str(front), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return front


read_index = operator.attrgetter("index")
KINDS = [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")]
UNEVEN = [0.04 * i + (0.3 if i > 5 else 0.0) + (0.5 if i > 22 else 0.0) for i in range(24)]


@pytest.mark.parametrize(("name", "coder"), KINDS)
def test_a_file_that_was_cut_off_is_told(tmp_path, name, coder):
    path = noise_video(tmp_path / name, coder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    seen = []
    with pytest.raises(DamagedVideoError, match=r"cut off|damaged"):
        seen.extend(map(read_index, FileSource(path).frames()))
    assert seen == list(range(len(seen)))
    assert 8 <= len(seen) < 18
    few = itertools.islice(FileSource(path).frames(), 5)  # whoever wants no more is not told
    assert len(list(few)) == 5


@pytest.mark.parametrize(
    ("name", "coder", "lost"), [("a.mkv", "libx264", 1), ("a.avi", "mpeg4", 2)]
)
def test_the_loss_of_the_last_frames_is_told_where_there_is_no_sound(tmp_path, name, coder, lost):
    path = noise_video(tmp_path / name, coder)
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[-lost]])
    seen = []
    with pytest.raises(DamagedVideoError, match=f"cut off after frame {24 - lost}"):
        seen.extend(map(read_index, FileSource(path).frames()))
    assert len(seen) == 24 - lost


@pytest.mark.parametrize("times", [None, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize(("name", "coder"), KINDS)
def test_a_whole_file_is_not_taken_for_a_cut_one(tmp_path, name, coder, times):
    path = noise_video(tmp_path / name, coder, times_s=times)
    assert len(list(FileSource(path).frames())) == 24
    assert len(list(FileSource(path).frames(every=5))) == 5


@pytest.mark.parametrize(("name", "sound"), [("s.mp4", "aac"), ("s.mkv", "aac")])
def test_sound_that_lasts_longer_is_no_damage(tmp_path, name, sound):
    path = write_video(tmp_path / name, spot_frames(10), sound=sound)
    assert len(list(FileSource(path).frames())) == 10


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4"):
        FileSource(tmp_path / "a.mp4")


def test_a_cut_mp4_with_its_index_at_the_end(tmp_path):
    path = write_video(tmp_path / "a.mp4", spot_frames(4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.mp4.*cut off.*index at the end.*Copy") as told:
        FileSource(path)
    assert "Errno" not in str(told.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no video file"):
        open_source(tmp_path / "none.mp4")


def test_folder_in_natural_order(tmp_path):
    for index in (0, 2, 10):
        name = str(tmp_path / f"frame{index}.png")
        cv2.imwrite(name, np.full((8, 6, 3), index * 20, np.uint8))
    source = open_source(tmp_path, frame_rate=10.0)
    assert source.image_size == (6, 8)
    frames = list(source.frames(first=1))
    assert [frame.time_s for frame in frames] == [0.0, 0.1, 0.2]
    assert [frame.photo and int(frame.photo.pixels[0, 0, 0]) for frame in frames] == [None, 40, 200]


def test_folder_of_different_sizes(tmp_path):
    for index, width in enumerate((6, 7)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((8, width, 3), np.uint8))
    with pytest.raises(InputError, match=r"1\.png.* 7x8"):
        FolderSource(tmp_path)
    with pytest.raises(InputError, match="frame_rate"):
        FolderSource(tmp_path, 0.0)


class Camera:
    """Three pictures, as OpenCV gives them: blue first."""

    def __init__(self, number):
        self.left, self.released = 3 if number == 0 else 0, False

    def isOpened(self):
        return self.left > 0

    def read(self):
        self.left -= 1
        return (
            (True, np.full((4, 6, 3), (255, 0, 9), np.uint8)) if self.left >= 0 else (False, None)
        )

    def release(self):
        self.released = True


def test_camera():
    source = CameraSource(0, Camera)
    frames = list(source.frames())
    assert source.is_live
    assert source.image_size == (6, 4)
    assert len(frames) == 2  # the first one told the size
    assert frames[0].photo.pixels[0, 0].tolist() == [9, 0, 255]
    assert frames[0].time_s <= frames[1].time_s
    assert source._capture.released


def test_no_camera():
    with pytest.raises(InputError, match="camera number 7"):
        CameraSource(7, Camera)


def test_names(tmp_path):
    assert is_video_name("walk.MP4")
    assert is_video_name("0")
    assert not is_video_name("photo.jpg")
    assert not is_video_name(str(tmp_path))
