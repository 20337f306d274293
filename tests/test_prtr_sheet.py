"""The example that trains PRTR's three networks and draws what they find."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kinemesh.inference.images import load_image

SCRIPT = Path(__file__).parents[1] / "examples" / "prtr_sheet.py"


@pytest.fixture
def sheet(monkeypatch):
    spec = importlib.util.spec_from_file_location("prtr_sheet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    monkeypatch.setattr(module, "SCENE", (128, 96))
    yield module
    torch.set_num_threads(threads)


def test_every_network_is_trained_and_has_its_row(sheet, tmp_path, monkeypatch):
    out = tmp_path / "sheet.jpg"
    words = ["--out", str(out), "--folder", str(tmp_path), "--scenes", "2", "5", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["prtr_sheet.py", *words])
    sheet.main()
    picture = cv2.imread(str(out))[:, :, ::-1]
    assert picture.shape == (3 * 96, 2 * 128, 3)
    scene = load_image(tmp_path / "train" / "000000000001.png").pixels
    for row, name in enumerate(("two-stage", "deformable", "sequential")):
        assert (tmp_path / name / "best" / "weights.safetensors").is_file()
        # below the name and beside the people the scene itself is seen
        part = picture[row * 96 + 32 : (row + 1) * 96, :128].astype(float)
        assert np.median(abs(part - scene[32:])) < 12
