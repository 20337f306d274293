"""What the README shows is run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kinemesh.cli import main
from kinemesh.formats.people_json import read_people_json

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def in_a_copy(tmp_path, monkeypatch):
    """A working folder with the examples of the repository."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_two_blocks_are_the_commands_that_ci_runs():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    assert "kinemesh predict" in blocks[0]
    assert "pytest" in blocks[1]


def test_python_example(in_a_copy):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=in_a_copy)
    assert (in_a_copy / "out" / "astronaut_overlay.png").stat().st_size > 0


@pytest.mark.parametrize("line", re.findall(r"^    kinemesh (.*?)(?:  .*)?$", README, re.M))
def test_every_command_exists_and_explains_itself(line, capsys):
    words = line.split()
    verb = words[:2] if words[0] == "data" else words[:1]
    recipe = words[1:2] if words[0] == "train" else []
    try:
        code = main([*verb, *recipe, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    text = capsys.readouterr().out
    for option in re.findall(r"--[a-z.\-]+", line):
        assert option in text


@pytest.mark.parametrize("command", ["models", "doctor"])
def test_looking_commands_run(command, capsys):
    assert main([command]) == 0
    assert "guided-graphormer" in capsys.readouterr().out


def test_data_sheet_runs(in_a_copy):
    assert main(["data", "sheet", "synthetic-hand", "--count", "4"]) == 0
    assert (in_a_copy / "synthetic-hand.png").stat().st_size > 0


def test_hands_of_a_folder(in_a_copy):
    words = "predict examples/ --task hand --out out/"
    assert main(words.split()) == 0
    stems = [path.stem for path in (ROOT / "examples").iterdir() if path.suffix in (".png", ".jpg")]
    for stem in stems:
        hands = read_people_json(in_a_copy / "out" / f"{stem}.json")
        assert {hand.skeleton for hand in hands} == {"hand21"}
        assert {hand.side for hand in hands} <= {"left", "right"}
        for suffix in ("_overlay.png", ".glb", ".obj", ".npz"):
            assert (in_a_copy / "out" / f"{stem}{suffix}").stat().st_size > 0


def test_several_people(in_a_copy):
    boxes = "40,30,200,260;200,20,180,240"
    assert main(["predict", "examples/astronaut.png", "--boxes", boxes]) == 0
    people = read_people_json(in_a_copy / "out" / "astronaut.json")
    assert [person.box_px for person in people] == [(40, 30, 200, 260), (200, 20, 180, 240)]
    assert all(np.isfinite(person.vertices).all() for person in people)


def test_training_runs(in_a_copy):
    words = "train debug-hand --steps 2 --optim.lr 1e-4 --output runs/trial"
    assert main(words.split()) == 0
    assert (in_a_copy / "runs" / "trial" / "best" / "weights.safetensors").stat().st_size > 0


def test_evaluation_runs(in_a_copy, capsys):
    assert main(["eval", "hand", "synthetic-hand", "--count", "4"]) == 0
    text = capsys.readouterr().out
    assert "PA-MPJPE" in text
    assert "4 samples" in text


@pytest.mark.parametrize("link", re.findall(r"\]\(((?:docs|CI|CO|CH)[^)]*)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists(), link
