import json
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
from kinemesh.doctor import examine, is_healthy, parse_requirement
from kinemesh.errors import InputError
from kinemesh.inference.run import OutputError, output_stems, run_images
from tests.fake_predictor import fake_predictor, spot_photo

SAVE = ("--save", "json", "glb")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(spot_photo(120, 90, 50, 40 + index)).save(folder / f"p{index}.png")
    return folder


@pytest.fixture(autouse=True)
def _fake_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinemesh, "load", lambda *_: fake_predictor(), raising=False)


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

    def test_output_error_keeps_its_cause(self) -> None:
        def process(*_: object) -> list[Path]:
            raise OSError(28, "No space left on device")

        with pytest.raises(OutputError, match="disk is full") as caught:
            run_images([Path("a")], process, Console(quiet=True))
        assert isinstance(caught.value.__cause__, OSError)


class TestOtherVerbs:
    def test_overview_names_every_verb(self, kinemesh_cli) -> None:
        code, out, _ = kinemesh_cli("--help")
        assert code == 0
        assert all(f"kinemesh {name}" in out for name in VERBS)
        assert kinemesh_cli()[0] == 2
        assert "data bake" in kinemesh_cli("data", "--help")[1]

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
        assert "did you mean 'predict'" in err
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

    def test_doctor(self, kinemesh_cli) -> None:
        _, out, _ = kinemesh_cli("doctor")
        assert "torch" in out
        assert kinemesh.__version__ in out


class TestDoctor:
    def test_damaged_and_missing_weights_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"sha256": "00"}')
        (tmp_path / "a.safetensors").write_bytes(b"x")
        (tmp_path / "b.json").write_text('{"sha256": "00"}')
        checks = {check.name: check for check in examine(tmp_path) if check.group == "weights"}
        assert checks["a"].status == "broken"
        assert checks["b"].status == "missing"
        assert checks["a"].mend
        assert not is_healthy(list(checks.values()))

    def test_good_weights(self, tmp_path: Path) -> None:
        import hashlib

        content = np.arange(10).tobytes()
        (tmp_path / "a.safetensors").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        (tmp_path / "a.json").write_text(json.dumps({"sha256": digest}))
        assert is_healthy(examine(tmp_path))

    def test_requirement_lines(self) -> None:
        assert parse_requirement("torch>=2.6") == ("torch", None)
        assert parse_requirement('roma>=1.5; extra == "train"') == ("roma", "train")
        assert parse_requirement("anny<0.7,>=0.6.2 ; extra == 'bake'") == ("anny", "bake")


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
