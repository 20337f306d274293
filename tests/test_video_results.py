"""What lies in a folder of results when a video is predicted again, or another beside it."""

import json
import shutil

import pytest

import kinemesh
from kinemesh.cli import main
from kinemesh.cli._video_exports import check_video_exports, write_video_exports
from kinemesh.errors import InputError
from kinemesh.formats import video as overlay_video
from kinemesh.formats import video_exports
from kinemesh.formats.frames import FramesFile
from kinemesh.formats.names import check_run
from kinemesh.formats.run_record import RunRecord, record_files
from kinemesh.inference.refinement import TrackSizes
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from tests.fake_predictor import fake_people, fake_predictor, spot_photo
from tests.test_video_run import predict
from tests.video_files import spot_frames, write_video

TABLES = ("csv", "coco")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "walk.mp4", spot_frames(4))


@pytest.fixture(scope="module")
def predicted(video, tmp_path_factory):
    """Results with tables and, as if it had been written, the skeleton of a track."""
    out = tmp_path_factory.mktemp("predicted")
    predict(video, out)
    write_video_exports(str(video), out, TABLES, None)
    skeleton = out / "walk_track_1.bvh"
    skeleton.write_text("HIERARCHY", "utf-8")
    record_files(out / "walk_frames", [skeleton])
    return out


@pytest.fixture
def out(predicted, tmp_path):
    return shutil.copytree(predicted, tmp_path / "out")  # with the times of the files


def further(folder):
    return {path.name for path in folder.iterdir()} - {"walk_frames", "walk_frames.jsonl"}


ALL = {"walk_overlay.mp4", "walk_joints.csv", "walk_coco.json", "walk_track_1.bvh"}


def test_what_was_written_of_replaced_frames_goes_with_them(video, out, capsys):
    assert further(out) == ALL
    with pytest.raises(InputError, match="outside the image"):
        predict(video, out, boxes="4000,4000,10,10", overlay=False)
    assert further(out) == ALL
    stranger = out / "walk_track_7.bvh"
    stranger.write_text("of somebody else", "utf-8")
    assert predict(video, out, max_frames=2, overlay=False) == 0
    assert further(out) == {stranger.name}
    capsys.readouterr()
    write_video_exports(str(video), out, ("csv",), None)
    assert stranger.name in capsys.readouterr().err
    assert further(out) == {stranger.name, "walk_joints.csv"}


def test_what_somebody_changed_since_stays_and_is_not_taken_for_ours(video, out, capsys):
    overlay = out / "walk_overlay.mp4"
    assert FramesFile.find(out).overlay == overlay
    for name in (overlay.name, "walk_joints.csv"):
        (out / name).write_bytes((out / name).read_bytes() + b"more")
    capsys.readouterr()
    assert predict(video, out, max_frames=2, overlay=False) == 0
    assert str(overlay) not in capsys.readouterr().out
    assert FramesFile.find(out).overlay is None
    write_video_exports(str(video), out, (), None)
    assert "walk_joints.csv, walk_overlay.mp4" in capsys.readouterr().err
    assert further(out) == {overlay.name, "walk_joints.csv"}


def test_an_overlay_that_is_still_to_be_made_is_not_an_old_one(video, out):
    place = out / "walk_frames"
    record = json.loads((place / "run.json").read_text("utf-8"))
    (place / "run.json").write_text(json.dumps(record | {"files": {}}), "utf-8")
    assert (out / "walk_overlay.mp4").is_file()
    assert FramesFile.find(out).overlay is None


def test_a_finished_run_that_is_asked_for_again_keeps_its_files(video, out, capsys):
    capsys.readouterr()
    assert predict(video, out, resume=True) == 0
    assert "Nothing left to do" in capsys.readouterr().out
    assert further(out) == ALL
    assert set(RunRecord.read(out / "walk_frames").files) == ALL
    write_video_exports(str(video), out, TABLES, None)  # may be written again
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": 2}, "every = 1, now it is 2"),
        ({"smooth": 0.9}, r"smooth = 0\.5, now it is 0\.9"),
        ({"overlay": False}, "overlay = True, now it is False"),
    ],
)
def test_a_finished_run_does_not_go_on_with_other_options(video, out, options, told):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(InputError, match=f"--resume: the finished run .*{told}"):
        predict(video, out, resume=True, **options)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_results_of_another_video_are_not_replaced(out, tmp_path):
    other = write_video(tmp_path / "walk.mkv", spot_frames(2))
    for refused in (
        lambda: check_video_exports(str(other), out, ()),
        lambda: predict(other, out),
    ):
        with pytest.raises(InputError, match=r"holds results of 'walk\.mp4'.*--out"):
            refused()
    assert further(out) == ALL


def test_a_photo_and_a_video_of_one_name_leave_each_other_alone(video, out, tmp_path):
    photo = tmp_path / "walk.png"
    with pytest.raises(InputError, match=r"walk_joints\.csv.* of the video 'walk\.mp4'"):
        check_run([photo], ["walk"], out, ("json", "csv"), ".png", None)
    check_run([photo], ["walk"], out, ("json", "npz", "overlay"), ".png", None)
    check_video_exports(str(video), out, TABLES)  # its own
    new = tmp_path / "new"
    new.mkdir()
    for kind, name in (("csv", "walk_joints.csv"), ("coco", "walk_coco.json")):
        (new / name).write_text("[]", "utf-8")  # rows of a photo without people
        with pytest.raises(InputError, match=f"{name}.*--out"):
            check_video_exports(str(video), new, (kind,))
    check_video_exports(str(video), new, ("overlay", "json"))


@pytest.mark.parametrize("name", ["walk_joints.csv", "walk_track_3.bvh", "walk_frames.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_told_before_any_work(video, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}', found a folder"):
        check_video_exports(str(video), tmp_path, ("csv", "bvh"))


def test_what_a_killed_run_was_writing_goes_with_the_next(video, out, monkeypatch):
    """Nothing unfinished lies where no run of the video would find it again."""
    inside = out / "walk_frames"
    seen = []

    def watched(function):
        def called(*arguments):
            hidden = [path for path in out.rglob(".*.partial*") if path.is_file()]
            seen.extend(path.relative_to(out).parts[0] for path in hidden)
            return function(*arguments)

        return called

    monkeypatch.setattr(video_exports, "coco_rows", watched(video_exports.coco_rows))
    monkeypatch.setattr(overlay_video, "_join", watched(overlay_video._join))
    assert predict(video, out, max_frames=3) == 0
    write_video_exports(str(video), out, TABLES, None)
    assert len(seen) > 3
    assert set(seen) == {"walk_frames"}
    for name in ("unfinished/.a.partial.csv", "raw/.a.partial.npz", ".a.partial.npz"):
        (inside / name).parent.mkdir(exist_ok=True)
        (inside / name).touch()
    assert predict(video, out, max_frames=3, resume=True) == 0
    assert not list(out.rglob(".*"))


def test_somebody_in_one_frame_stays_where_frames_are_far_apart():
    body = fake_people("body")[0]

    def lasting(step_s):
        sizes = TrackSizes()
        for index in range(4):
            people = (TrackedPerson(index + 1, body),)
            sizes.add(VideoFrame(index, index * step_s, (300, 200), people))
        return list(sizes.lasting())

    assert lasting(0.04) == []
    assert lasting(4.0) == [1, 2, 3, 4]


def test_entries_of_no_frame_are_counted(video, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    table = {key: [[20, 28, 40, 40]] for key in ("0", "1", "2", "3", "4", "x.png")}
    boxes.write_text(json.dumps(table), "utf-8")
    assert predict(video, tmp_path, boxes=str(boxes), overlay=False) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"'{boxes}': 2 of 6 entries match no frame: '4', 'x.png'"]


def test_entries_of_no_photo_are_counted(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.setattr(kinemesh, "load", lambda *_: fake_predictor("body"))
    photo, boxes = tmp_path / "a.png", tmp_path / "boxes.json"
    Image.fromarray(spot_photo(128, 96, 40, 48)).save(photo)
    table = {key: [[20, 28, 40, 40]] for key in ("a.png", "b.png")}
    boxes.write_text(json.dumps(table), "utf-8")
    words = ["--boxes", str(boxes), "--out", str(tmp_path / "out"), "--save", "json"]
    assert main(["predict", str(photo), *words]) == 0
    assert "1 of 2 entries matches no photo: 'b.png'" in capsys.readouterr().err


def test_options_of_photos_are_refused_before_any_work(video, tmp_path, capsys):
    words = ["predict", str(video), "--out", str(tmp_path / "out"), "--overlay", "jpg"]
    assert main(words) == 2
    assert "--overlay is for photos" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_is_one(video, tmp_path, capsys):
    assert predict(video, tmp_path, max_frames=1, overlay=False) == 0
    assert "1 frame in" in capsys.readouterr().out
