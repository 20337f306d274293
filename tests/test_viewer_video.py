"""Frames of a video in the viewer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinemesh.errors import InputError
from kinemesh.formats.frames import FramesHeader, FramesWriter
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from kinemesh.viewer.folder import open_folder
from kinemesh.viewer.video_pictures import FilePictures
from tests.fake_predictor import fake_people

SIZE = (64, 48)
RATE = 10
COUNT = 25


def picture(index: int) -> np.ndarray:
    """A grey whose level tells the frame."""
    return np.full((SIZE[1], SIZE[0], 3), 15 + 9 * index, np.uint8)


def shown(pixels: np.ndarray | None) -> int:
    """Which frame a picture is of."""
    assert pixels is not None
    return round((float(pixels.mean()) - 15) / 9)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    av = pytest.importorskip("av", reason="needs the extra video")
    path: Path = tmp_path_factory.mktemp("video") / "walk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.gop_size = 8
        for index in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_results(folder: Path, source: Path, every: int = 1) -> None:
    """Two tracks; the second comes later and the last frame is empty."""
    first, second = fake_people("body")
    header = FramesHeader(str(source), SIZE, RATE, every)
    with FramesWriter(folder, source.stem, header) as writer:
        for index in range(0, COUNT, every):
            moved = replace(first, vertices=first.vertices + np.float32([0.01 * index, 0, 0]))
            people = [TrackedPerson(1, moved)]
            if index >= 10:
                people.append(TrackedPerson(2, second))
            if index + every >= COUNT:
                people = []
            writer.write(VideoFrame(index, index / RATE, SIZE, tuple(people)))


def test_any_order_gives_the_right_picture(video: Path) -> None:
    pictures = FilePictures(video)
    assert pictures.image_size == SIZE
    for index in (0, 1, 2, 20, 19, 24, 0, 13, 12, 11, 23, 23):
        assert shown(pictures.at(index, index / RATE)) == index
    assert shown(pictures.at(99, 99 / RATE)) == COUNT - 1


def test_frames_with_their_pictures(video: Path, tmp_path: Path) -> None:
    write_results(tmp_path / "out", video, every=3)
    (album,) = open_folder(tmp_path / "out")
    assert (album.title, len(album), album.names) == ("walk", 9, ("track_1", "track_2"))
    assert album.frame_rate_hz == pytest.approx(RATE / 3)
    scene = album.scene(5)
    assert [figure.name for figure in scene.figures] == ["track_1", "track_2"]
    assert shown(scene.backdrop) == 15
    assert scene.note == ""
    start = fake_people("body")[0].vertices
    np.testing.assert_allclose(
        scene.figures[0].person.vertices[:, 0] - start[:, 0], 0.15, atol=1e-6
    )
    assert [figure.name for figure in album.scene(0).figures] == ["track_1"]
    empty = album.scene(8)
    assert empty.figures == ()
    assert empty.camera == scene.camera


def test_video_that_moved_is_found_or_its_overlay_stands_in(video: Path, tmp_path: Path) -> None:
    write_results(tmp_path / "out", tmp_path / "gone" / video.name)
    scene = open_folder(tmp_path / "out", video.parent)[0].scene(7)
    assert shown(scene.backdrop) == 7
    scene = open_folder(tmp_path / "out")[0].scene(7)
    assert scene.backdrop is None
    assert "--photos" in scene.note
    (tmp_path / "out" / "walk_overlay.mp4").write_bytes(video.read_bytes())
    scene = open_folder(tmp_path / "out")[0].scene(7)
    assert shown(scene.backdrop) == 7
    assert "overlay" in scene.note


def test_folder_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "walk").mkdir()
    for index in range(13):
        Image.fromarray(picture(index)).save(tmp_path / "walk" / f"{index}.png")
    write_results(tmp_path / "out", tmp_path / "walk")
    assert shown(open_folder(tmp_path / "out")[0].scene(12).backdrop) == 12


def test_a_damaged_file_is_told_by_name_and_the_others_open(video: Path, tmp_path: Path) -> None:
    write_results(tmp_path, video, every=8)
    good = (tmp_path / "walk_frames.jsonl").read_text("utf-8")
    (tmp_path / "a_frames.jsonl").write_text("no JSON\n", "utf-8")
    header, _, frames = good.partition("\n")
    wrong = header.replace('"every":8', '"every":0')
    (tmp_path / "b_frames.jsonl").write_text(f"{wrong}\n{frames}", "utf-8")
    told: list[str] = []
    (album,) = open_folder(tmp_path, tell=told.append)
    assert album.title == "walk"
    assert all(f"{name}_frames.jsonl" in line for name, line in zip("ab", told, strict=True))
    (tmp_path / "walk_frames.jsonl").unlink()
    with pytest.raises(InputError, match=r"(?s)a_frames\.jsonl.*b_frames\.jsonl"):
        open_folder(tmp_path, tell=told.append)
    assert len(told) == 2


def test_run_that_has_just_begun(tmp_path: Path, video: Path) -> None:
    FramesWriter(tmp_path, "walk", FramesHeader(str(video), SIZE, RATE)).close()
    with pytest.raises(InputError, match="no frame yet"):
        open_folder(tmp_path)
