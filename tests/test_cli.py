import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import kinemesh
from kinemesh.cli import VERBS, main
from kinemesh.cli._shared import Verb
from kinemesh.doctor import (
    Requirement,
    examine,
    fits,
    fits_by_numbers,
    is_healthy,
    join_requirements,
    parse_requirement,
)
from kinemesh.errors import InputError
from kinemesh.evaluation import DATASETS
from kinemesh.inference.predictor import Predictor
from kinemesh.inference.run import output_stems, run_images
from kinemesh.metrics import MetricReport
from kinemesh.training import Interrupted
from tests.fake_predictor import fake_predictor, spot_photo
from tests.test_mesh_networks import pose_predictor

SAVE = ("--save", "json", "glb")


def report(metric: str, value: float) -> dict[str, object]:
    return {
        "metric": metric,
        "value": value,
        "unit": "mm",
        "joint_set": "hand21",
        "root": "wrist",
        "alignment": "none",
        "sample_count": 2048,
        "dataset": "synthetic-hand, held out, seed 0",
    }


CARD = {
    "name": "guided-graphormer-hand",
    "task": "hand",
    "license": "Apache-2.0",
    "architecture": "guided-graphormer",
    "resolution": 128,
    "parameters": 1234567,
    "mesh": "anny-hand",
    "skeleton": "hand21",
    "origin": "Trained from scratch on renders, with a backbone [of a package].",
    "data": "Synthetic renders of a right hand (CC0) by this project; no photos.",
    "limits": "One hand a crop; fists, thumbs and depth are weak points of this model.",
    "recipe": {"name": "synthetic-hand", "step": 20000},
    "scores": [report("MPJPE", 12.345), report("PA-MPJPE", 6.5)],
    "mean_shape_scores": [report("MPJPE", 45.0)],
    "evaluated_with": "kinemesh eval hand synthetic-hand --count 2048",
    "sha256": "0123456789abcdef" * 4,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(spot_photo(120, 90, 50, 40 + index)).save(folder / f"p{index}.png")
    return folder


@pytest.fixture(autouse=True)
def _fake_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, _: str, assets: Path | None = None) -> Predictor:
        return fake_predictor("body" if name == "body" else "hand")

    monkeypatch.setattr(kinemesh, "load", load, raising=False)


@pytest.fixture
def kinemesh_cli(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestPredict:
    def test_folder(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        code, out, _ = kinemesh_cli("predict", photos, "--out", tmp_path / "out", *SAVE)
        assert code == 0
        assert "3 of 3 images" in out
        assert names(tmp_path / "out") == sorted(f"p{i}.{s}" for i in range(3) for s in SAVE[1:])

    def test_boxes_and_side(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        options = ("--boxes", "-5,0,60,60;30,20,50,50", "--side", "left", "--save", "json")
        code, out, _ = kinemesh_cli(
            "predict", photos / "p0.png", "--out", tmp_path, "--task", "hand", *options
        )
        assert code == 0
        assert out.strip() == str(tmp_path / "p0.json")
        content = json.loads((tmp_path / "p0.json").read_text())
        assert [person["box_px"] for person in content["people"]] == [
            [-5, 0, 60, 60],
            [30, 20, 50, 50],
        ]
        assert {person["side"] for person in content["people"]} == {"left"}

    def test_a_bad_file_does_not_stop_the_run(
        self, photos: Path, tmp_path: Path, kinemesh_cli
    ) -> None:
        whole = (photos / "p1.png").read_bytes()
        (photos / "p1.png").write_bytes(whole[: len(whole) // 2])
        (photos / "text.jpg").write_text("not an image")
        code, out, err = kinemesh_cli("predict", photos, "--out", tmp_path / "out", *SAVE)
        assert code == 1
        assert "2 of 4 images" in out
        assert "2 failed" in err
        assert "p1.png" in err
        assert "text.jpg" in err
        assert "Traceback" not in err
        assert names(tmp_path / "out") == ["p0.glb", "p0.json", "p2.glb", "p2.json"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["gone.jpg"], "no file"),
            (["{empty}"], "has no images"),
            (["{photos}/*.gif"], "matches no image"),
            (["{photos}", "--boxes", "nan,0,5,5"], "finite"),
            (["{photos}", "--boxes", "0,0,-5,5"], "above 0"),
            (["{photos}", "--boxes", "gone.json"], "Cannot read"),
            ([], "No image was named"),
        ],
    )
    def test_wrong_usage(
        self, photos: Path, tmp_path: Path, kinemesh_cli, words: list[str], message: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        filled = [word.format(photos=photos, empty=tmp_path / "empty") for word in words]
        code, _, err = kinemesh_cli("predict", *filled, "--out", tmp_path / "out")
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()

    def test_box_outside_is_a_failure_of_the_image(
        self, photos: Path, tmp_path: Path, kinemesh_cli
    ) -> None:
        words = ("predict", photos / "p0.png", "--boxes", "500,0,9,9", "--out", tmp_path / "out")
        code, _, err = kinemesh_cli(*words)
        assert code == 1
        assert "outside the image" in " ".join(err.split())
        assert not (tmp_path / "out").exists()

    def test_output_is_a_file(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        (tmp_path / "out").touch()
        code, _, err = kinemesh_cli("predict", photos / "p0.png", "--out", tmp_path / "out")
        assert code == 2
        assert "found the file" in err

    @pytest.mark.parametrize(
        ("number", "message"), [(28, "disk is full"), (30, "Cannot write"), (13, "Cannot write")]
    )
    def test_unwritable_output_stops_the_run(
        self,
        photos: Path,
        tmp_path: Path,
        kinemesh_cli,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        message: str,
    ) -> None:
        calls = []

        def refuse(path: Path, _: bytes) -> int:
            calls.append(path)
            raise OSError(number, "refused", str(path))

        monkeypatch.setattr(Path, "write_bytes", refuse)
        code, _, err = kinemesh_cli("predict", photos, "--out", tmp_path / "out", *SAVE)
        assert code == 1
        assert message in err
        assert "Stopped at" in err
        assert len(calls) == 1
        assert names(tmp_path / "out") == []

    def test_ctrl_c(
        self, photos: Path, tmp_path: Path, kinemesh_cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        predictor, calls = fake_predictor(), []
        usual = predictor.predict

        def interrupted(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return usual(*arguments)

        monkeypatch.setattr(predictor, "predict", interrupted)
        monkeypatch.setattr(kinemesh, "load", lambda *_: predictor)
        code, out, err = kinemesh_cli("predict", photos, "--out", tmp_path / "out", *SAVE)
        assert code == 130
        assert "1 of 3" in out
        assert "Interrupted" in err
        assert names(tmp_path / "out") == ["p0.glb", "p0.json"]

    def test_results_never_overwrite_the_boxes(self, photos: Path, kinemesh_cli) -> None:
        (photos / "p0.json").write_text("[[0, 0, 50, 50]]")
        words = ("predict", photos / "p0.png", "--boxes", photos / "p0.json", "--out", photos)
        code, _, err = kinemesh_cli(*words)
        assert code == 2
        assert "overwrite the boxes" in err

    def test_results_never_overwrite_a_photo(self, photos: Path, kinemesh_cli) -> None:
        other = photos / "p0_overlay.png"
        other.write_bytes((photos / "p1.png").read_bytes())
        before = other.read_bytes()
        code, _, err = kinemesh_cli("predict", photos / "p0.png", other, "--out", photos)
        assert code == 2
        assert "overwrite the photo" in err
        assert other.read_bytes() == before
        assert "p0.json" not in names(photos)

    def test_links_hide_no_photo(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "p0_overlay.png").symlink_to(photos / "p1.png")
        (tmp_path / "alias").symlink_to(tmp_path / "out")
        for second in (photos / "p1.png", tmp_path / "out" / "p0_overlay.png"):
            words = ("predict", photos / "p0.png", second, "--out", tmp_path / "alias")
            code, _, err = kinemesh_cli(*words)
            assert code == 2
            assert "overwrite the photo" in err

    def test_a_foreign_json_stays(self, photos: Path, kinemesh_cli) -> None:
        (photos / "p0.json").write_text('{"camera": "notes of mine"}')
        words = ("predict", photos / "p0.png", "--out", photos, "--save", "json")
        code, _, err = kinemesh_cli(*words)
        assert code == 2
        assert "kinemesh did not write" in err
        (photos / "p0.json").unlink()
        assert [kinemesh_cli(*words)[0] for _ in range(2)] == [0, 0]  # its own it replaces

    def test_a_long_name_costs_one_image(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        (photos / f"{'a' * 246}.png").write_bytes((photos / "p0.png").read_bytes())
        words = ("predict", photos, "--out", tmp_path / "out", "--save", "overlay")
        code, out, err = kinemesh_cli(*words)
        assert code == 1
        assert "3 of 4 images" in out
        assert "shorter name" in err
        assert "Stopped" not in err

    def test_a_full_disk_gives_an_account(
        self, photos: Path, tmp_path: Path, kinemesh_cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (photos / "p0.png").write_bytes(b"broken")
        original = Path.write_bytes

        def write_until_full(path: Path, content: bytes) -> int:
            if (tmp_path / "out" / "p1.json").exists():
                raise OSError(28, "No space left on device", str(path))
            return original(path, content)

        monkeypatch.setattr(Path, "write_bytes", write_until_full)
        code, out, err = kinemesh_cli("predict", photos, "--out", tmp_path / "out", *SAVE)
        assert code == 1
        assert "1 of 3 images done" in out
        assert "1 failed:" in err
        assert f"Stopped at {photos / 'p2.png'}" in err
        assert err.rstrip().splitlines()[-1].startswith("kinemesh: The disk is full")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([""], "An argument is empty"),
            (["{photo}", "--out", ""], "--out is empty"),
            (["{photo}", "--out="], "--out is empty"),
            (["{photo}", "--save"], "--save is empty"),
            (["{photo}", "--save", "jsn"], "did you mean 'json'"),
            (["--save", "json", "{photo}"], "Images come before --save"),
            (["{photo}", "--task", "None"], "body"),
            (["{photo}", "--focal-px", "nan"], "above 0"),
            (["{photo}", "--focal-px", "-3"], "above 0"),
        ],
    )
    def test_refused_options(
        self, photos: Path, tmp_path: Path, kinemesh_cli, monkeypatch, words, message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        filled = [word.format(photo=photos / "p0.png") for word in words]
        code, _, err = kinemesh_cli("predict", *filled)
        assert code == 2
        assert message in err
        assert names(tmp_path) == ["photos"]

    @pytest.mark.parametrize("save", [["json,glb"], ["json", "glb"], ["json,", "glb"]])
    def test_save_takes_commas(self, photos: Path, tmp_path: Path, kinemesh_cli, save) -> None:
        words = ("predict", photos / "p0.png", "--out", tmp_path / "out", "--save", *save)
        assert kinemesh_cli(*words)[0] == 0
        assert names(tmp_path / "out") == ["p0.glb", "p0.json"]

    def test_implausible_focal_length_is_refused(
        self, photos: Path, tmp_path: Path, kinemesh_cli
    ) -> None:
        words = ("predict", photos / "p0.png", "--out", tmp_path / "out", "--focal-px", "4")
        code, _, err = kinemesh_cli(*words)
        assert code == 1
        assert "not plausible" in err

    def test_undecodable_file_name(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        try:
            (photos / "p0.png").rename(photos / name)
        except OSError:
            pytest.skip("this disk takes only UTF-8 names")
        code, _, _ = kinemesh_cli("predict", photos / name, "--out", tmp_path / "out")
        assert code == 0
        content = json.loads((tmp_path / "out" / os.fsdecode(b"caf\xe9.json")).read_text("utf-8"))
        assert content["image"]["file"] == "caf\ufffd.png"

    def test_skipped_pictures_are_told(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        (photos / "raw.nef").touch()
        code, _, err = kinemesh_cli("predict", photos, "--out", tmp_path / "out", *SAVE)
        assert code == 0
        assert "1 file skipped, no readable format: raw.nef" in err

    @pytest.mark.parametrize("verb", ["predict", "data sheet"])
    def test_help_is_free_of_none(self, kinemesh_cli, verb: str) -> None:
        out = kinemesh_cli(*verb.split(), "--help")[1]
        assert "None" not in out
        assert "(default: )" not in out

    def test_many_boxes(self, photos: Path, tmp_path: Path, kinemesh_cli) -> None:
        boxes = ";".join(f"{x}.25,1.125,50.5,60.75" for x in range(40))
        assert len(boxes) > 255  # longer than a file name may be
        words = ("predict", photos / "p0.png", "--boxes", boxes, "--out", tmp_path)
        code, _, err = kinemesh_cli(*words, "--save", "json")
        assert code == 0
        assert "p0.png, box 1: score 0.01, probably no hand here" not in err
        assert "p0.png, box 1: score 0.01, probably no person here" in err
        people = json.loads((tmp_path / "p0.json").read_text())["people"]
        assert [person["box_px"][0] for person in people] == [x + 0.25 for x in range(40)]

    @pytest.mark.parametrize(
        ("options", "skeleton", "side"),
        [
            ([], "coco17", None),
            (["--task", "hand"], "hand21", "right"),
            (["--model", "my_hand.safetensors"], "hand21", "right"),
            (["--model", "my_hand.safetensors", "--task", "hand"], "hand21", "right"),
            (["--model", "body"], "coco17", None),
        ],
    )
    def test_task_comes_from_the_option_or_the_model(
        self, photos: Path, tmp_path: Path, kinemesh_cli, options, skeleton: str, side: str | None
    ) -> None:
        words = ("predict", photos / "p0.png", "--out", tmp_path, "--save", "json", *options)
        assert kinemesh_cli(*words)[0] == 0
        (person,) = json.loads((tmp_path / "p0.json").read_text())["people"]
        assert (person["skeleton"], person["side"]) == (skeleton, side)

    def test_assets_reach_the_loader(self, photos: Path, kinemesh_cli, monkeypatch) -> None:
        calls = []

        def load(*arguments: object) -> Predictor:
            calls.append(arguments)
            return fake_predictor("body")

        monkeypatch.setattr(kinemesh, "load", load)
        words = ("--model", "metro.safetensors", "--assets", photos, "--out", photos / "out")
        assert kinemesh_cli("predict", photos / "p0.png", *words, *SAVE)[0] == 0
        assert calls == [("metro.safetensors", "auto", photos)]

    @pytest.mark.parametrize(
        ("options", "code", "message", "found"),
        [
            (
                (),
                0,
                "without a mesh: no glb, obj",
                ["p0.json", "p0.npz", "p0_overlay.png", "p0_views.png"],
            ),
            (("--save", "json"), 0, "", ["p0.json"]),
            (("--save", "json,obj"), 2, "'obj' holds a mesh", None),
            (("--side", "auto"), 2, "cannot tell left hands from right", None),
        ],
    )
    def test_a_model_without_a_mesh(
        self, photos: Path, kinemesh_cli, monkeypatch, options, code: int, message: str, found
    ) -> None:
        monkeypatch.setattr(kinemesh, "load", lambda *_: pose_predictor())
        words = ("--detector", "none", "--out", photos / "out", *options)
        result = kinemesh_cli("predict", photos / "p0.png", *words)
        assert result[0] == code
        assert message in result[2]
        assert message or not result[2]
        if found is None:
            assert not (photos / "out").exists()
        else:
            assert names(photos / "out") == found

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--task", "body", "--model", "my_hand.safetensors"], "--model recovers a hand"),
            (["--task", "hand", "--model", "body"], "--model recovers a body"),
            (["--side", "left"], "--side left is for hands"),
        ],
    )
    def test_contradictions_are_refused(
        self, photos: Path, tmp_path: Path, kinemesh_cli, options: list[str], message: str
    ) -> None:
        words = ("predict", photos / "p0.png", "--out", tmp_path / "out", *options)
        code, _, err = kinemesh_cli(*words)
        assert code == 2
        assert message in err
        assert not (tmp_path / "out").exists()


class TestRun:
    def test_stems_are_distinct(self) -> None:
        paths = ["x/a.jpg", "y/a.jpg", "y/b.jpg", "y/b.png", "c.jpg", "z/C.jpg", "z/d.jpg"]
        stems = output_stems(Path(path) for path in paths)
        assert stems[:4] == ["x_a", "y_a", "b_jpg", "b_png"]
        assert stems[6] == "d"
        assert len({stem.lower() for stem in stems}) == len(paths)

    def test_stems_that_collide_after_renaming(self) -> None:
        paths = ["1/p/a.jpg", "2/p/a.jpg", "1/p/a.png", "3/p_a.jpg"]
        stems = output_stems(Path(path) for path in paths)
        assert len(set(stems)) == 4

    def test_an_unforeseen_error_is_noted(self) -> None:
        def process(path: Path, _: str) -> list[Path]:
            if path.name == "b":
                raise RuntimeError("odd")
            return [path]

        paths = [Path("a"), Path("b"), Path("c")]
        report = run_images(paths, process, Console(quiet=True))
        assert report.done == [Path("a"), Path("c")]
        assert report.failures[0].message == "unforeseen RuntimeError: odd"
        assert report.exit_code == 1

    def test_progress_bar_on_a_terminal(self) -> None:
        console = Console(force_terminal=True, record=True, width=80)
        run_images([Path("a"), Path("b")], lambda path, _: [path], console)
        assert "2/2" in console.export_text()

    @pytest.mark.parametrize("number", [13, 1, 28, 30])
    def test_an_unwritable_folder_stops_the_run(self, number: int) -> None:
        def process(path: Path, _: str) -> list[Path]:
            if path.name == "b":
                raise OSError(number, "refused", "out/b.json")
            return [path]

        report = run_images([Path(name) for name in "abc"], process, Console(quiet=True))
        assert report.done == [Path("a")]
        assert report.stopped is not None
        assert report.stopped.path == Path("b")
        assert (report.failures, report.exit_code) == ([], 1)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(36, "File name too long", "out/b.json"), "shorter name"),
            (OSError(5, "Input/output error", "b"), "Input/output error"),
            (OSError(13, "Permission denied", "b"), "Permission denied"),  # the photo itself
            (OSError("no number"), "no number"),
        ],
    )
    def test_other_system_errors_cost_one_image(self, error: OSError, message: str) -> None:
        def process(path: Path, _: str) -> list[Path]:
            if path.name == "b":
                raise error
            return [path]

        report = run_images([Path(name) for name in "abc"], process, Console(quiet=True))
        assert report.done == [Path("a"), Path("c")]
        assert message in report.failures[0].message
        assert "Cannot write" not in report.failures[0].message


class TestOtherVerbs:
    def test_overview_names_every_verb(self, kinemesh_cli) -> None:
        code, out, _ = kinemesh_cli("--help")
        assert code == 0
        assert all(f"kinemesh {name}" in out for name in VERBS)
        assert kinemesh_cli()[0] == 2
        help_of_data = kinemesh_cli("data", "--help")[1]
        assert "data bake" in help_of_data
        assert "predict" not in help_of_data

    @pytest.mark.parametrize("has_single", [False, True])
    def test_a_group_of_two_words(
        self, kinemesh_cli, monkeypatch: pytest.MonkeyPatch, has_single: bool
    ) -> None:
        def cut(count: int = 1) -> int:
            """Cut."""
            return count

        monkeypatch.setitem(VERBS, "video cut", Verb("video cut", "cut a video", cut))
        if has_single:
            monkeypatch.setitem(VERBS, "video", Verb("video", "show", lambda _: 9, None, True))
        assert kinemesh_cli("video", "cut", "--count", 5)[0] == 5
        assert "kinemesh video cut" in kinemesh_cli("video", "cut", "--help")[1]
        code, out, err = kinemesh_cli("video", "ct")
        assert code == (9 if has_single else 2)
        assert has_single or "did you mean 'video cut'" in err
        code, out, _ = kinemesh_cli("video")
        assert (code, "cut a video" in out) == ((9, False) if has_single else (2, True))

    def test_bake_without_anny_makes_no_folder(
        self, tmp_path: Path, kinemesh_cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "anny", None)
        code, _, err = kinemesh_cli("data", "bake", "--out", tmp_path / "new")
        assert code == 1
        assert "anny" in err
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", [name for name in VERBS if name != "train"])
    def test_help_of_each_verb(self, kinemesh_cli, name: str) -> None:
        code, out, _ = kinemesh_cli(*name.split(), "--help")
        assert code == 0
        assert f"kinemesh {name}" in out

    def test_version(self, kinemesh_cli) -> None:
        assert kinemesh_cli("--version")[1].strip() == f"kinemesh {kinemesh.__version__}"

    def test_unknown_words(self, kinemesh_cli) -> None:
        code, _, err = kinemesh_cli("predcit", "a.jpg")
        assert code == 2
        assert "'kinemesh predcit' (did you mean 'predict'?). List" in err
        assert kinemesh_cli("predict", "a.jpg", "--sid", "left")[0] == 2
        assert kinemesh_cli("data", "cook")[0] == 2
        code, _, err = kinemesh_cli("train", "synthetic-hnd")
        assert code == 2
        assert "synthetic-hand" in err

    def test_train_takes_overrides(self, kinemesh_cli, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = []
        monkeypatch.setattr("kinemesh.training.train", taken.append)
        code, _, _ = kinemesh_cli("train", "debug-hand", "--steps", 7, "--optim.lr", 0.5)
        assert code == 0
        assert (taken[0].steps, taken[0].optim.lr) == (7, 0.5)
        assert "synthetic-hand" in kinemesh_cli("train")[1]

    def test_interrupted_training_leaves_the_message_to_the_trainer(
        self, kinemesh_cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(_: object) -> None:
            print("said once", file=sys.stderr)
            raise Interrupted("said once")

        monkeypatch.setattr("kinemesh.training.train", stop)
        code, out, err = kinemesh_cli("train", "debug-hand")
        assert (code, out, err) == (130, "", "said once\n")

    @pytest.mark.parametrize("verb", ["data sheet", "eval"])
    def test_help_names_every_data_set(self, kinemesh_cli, verb: str) -> None:
        text = kinemesh_cli(*verb.split(), "--help")[1]
        assert all(name in text for name in DATASETS)

    def test_unknown_data_set(self, kinemesh_cli) -> None:
        code, _, err = kinemesh_cli("data", "sheet", "synthetic-hnd")
        assert code == 2
        assert "did you mean 'synthetic-hand'" in err

    @pytest.mark.parametrize("width", [80, 120])
    def test_models_show_whole_cards(
        self, kinemesh_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        monkeypatch.setattr("kinemesh.models.registry.WEIGHTS_DIR", tmp_path)
        monkeypatch.setenv("COLUMNS", str(width))
        (tmp_path / "guided-graphormer-hand.json").write_text(json.dumps(CARD))
        code, out, _ = kinemesh_cli("models")
        assert code == 0
        assert max(len(line) for line in out.splitlines()) <= width
        text = " ".join(out.split())
        for report in [*CARD["scores"], *CARD["mean_shape_scores"]]:
            assert str(MetricReport(**report)) in text
        wanted = ("anny-hand", "hand21", "Apache-2.0", "128 x 128", "1,234,567", "0123456789abcdef")
        for value in (*wanted, CARD["data"], CARD["evaluated_with"]):
            assert value in text

    def test_no_model(self, kinemesh_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kinemesh.models.registry.WEIGHTS_DIR", tmp_path)
        code, out, _ = kinemesh_cli("models")
        assert code == 1
        assert "kinemesh doctor" in out

    def test_doctor(self, kinemesh_cli) -> None:
        _, out, _ = kinemesh_cli("doctor")
        assert "torch" in out
        assert kinemesh.__version__ in out

    def test_doctor_gives_commands_in_one_piece(
        self, kinemesh_cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.1")
        code, out, _ = kinemesh_cli("doctor")
        assert code == 1
        assert "  pip install 'opencv-python-headless>=4.10'" in out.splitlines()


class TestDoctor:
    def test_damaged_and_missing_weights_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"sha256": "00"}')
        (tmp_path / "a.safetensors").write_bytes(b"x")
        (tmp_path / "b.json").write_text('{"sha256": "00"}')
        checks = {check.name: check for check in examine(tmp_path) if check.group == "weights"}
        assert checks["a"].status == "broken"
        assert checks["b"].status == "missing"
        for check in checks.values():
            assert check.mend == "pip install --force-reinstall --no-deps ."
            assert "folder" in check.detail
        assert not is_healthy(list(checks.values()))

    def test_good_weights(self, tmp_path: Path) -> None:
        import hashlib

        content = np.arange(10).tobytes()
        (tmp_path / "a.safetensors").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        (tmp_path / "a.json").write_text(json.dumps({"sha256": digest}))
        assert is_healthy(examine(tmp_path))

    def test_requirement_lines(self) -> None:
        read = parse_requirement
        assert read("torch>=2.6") == Requirement("torch", ">=2.6")
        assert read("torch (>=2.6)") == Requirement("torch", ">=2.6")
        assert read('roma>=1.5; extra == "train"') == Requirement("roma", ">=1.5", ("train",))
        assert read("kinemesh[train]; extra == 'dev'") == Requirement("kinemesh", "", ("dev",))
        wanted = Requirement("anny", "<0.7,>=0.6.2", ("bake",))
        assert read("anny<0.7, >=0.6.2 ; extra == 'bake'") == wanted

    def test_a_package_is_listed_once(self) -> None:
        lines = ["numpy>=1.26"]
        lines += [f"scipy>=1.11; extra == '{extra}'" for extra in ("bake", "dev")]
        lines += ["numpy<3; extra == 'dev'"]
        assert join_requirements(lines) == [
            Requirement("numpy", ">=1.26,<3"),
            Requirement("scipy", ">=1.11", ("bake", "dev")),
        ]
        names = [check.name for check in examine() if check.group in ("core", "extra")]
        assert len({name.split(" ")[0] for name in names}) == len(names)

    @pytest.mark.parametrize("check", [fits, fits_by_numbers])
    @pytest.mark.parametrize(
        ("version", "specifier", "expected"),
        [
            ("2.6.0", ">=2.6", True),
            ("2.13.0+cpu", ">=2.6", True),
            ("2.5.1", ">=2.6", False),
            ("0.10", ">=0.9", True),
            ("0.7.0", ">=0.6.2,<0.7", False),
            ("0.6.10", "<0.7,>=0.6.2", True),
            ("0.1.0", "==0.1.0", True),
            ("0.1", "==0.1.0", True),
            ("0.1.1", "==0.1.0", False),
            ("3", "", True),
        ],
    )
    def test_versions(self, check, version: str, specifier: str, expected: bool) -> None:
        assert check(version, specifier) == expected

    def test_packages_that_are_too_old_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.1")
        checks = {check.name.split(" ")[0]: check for check in examine()}
        assert checks["torch"].status == "broken"
        assert checks["torch"].detail == "0.0.1, but kinemesh needs >=2.6"
        assert checks["torch"].mend == "pip install 'torch>=2.6'"
        assert checks["webdataset"].status == "broken"
        assert not is_healthy([checks["torch"]])
        assert is_healthy([checks["webdataset"]])


def test_the_package_runs_as_a_module() -> None:
    """As ``accelerate launch -m kinemesh`` and ``torchrun -m kinemesh`` start it."""
    for word, code in (("--version", 0), ("nosuch", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "kinemesh", word],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code
        said = done.stderr if code else done.stdout
        assert ("no command 'kinemesh nosuch'" if code else kinemesh.__version__) in said


def test_import_is_light() -> None:
    code = (
        "import sys, kinemesh, kinemesh.cli;"
        "assert not {'torch', 'cv2', 'trimesh'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kinemesh.nothing  # noqa: B018
    assert "predict" not in dir(kinemesh)
    assert {"load", "save"} <= set(dir(kinemesh))
    assert issubclass(InputError, ValueError)
