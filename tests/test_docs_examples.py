"""The Python of docs/models.md and docs/body-models.md runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

from kinemesh.models.registry import load_model
from tests.body_fixtures import write_mano_assets, write_smpl_assets

DOCS = Path(__file__).resolve().parents[1] / "docs"


def python_of(page: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)
    assert len(blocks) > 1
    return "\n".join(blocks)


@pytest.mark.slow
def test_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(compile(python_of("models.md"), "models.md", "exec"), names)
    network, _, _ = load_model("small.safetensors")
    assert network.config == names["network"].config
    low, high = names["wrist"].detach().aminmax()
    assert (float(low), float(high)) == (0, 1)
    assert re.search(r"\d+,\d{3},\d{3} values are trained", capsys.readouterr().out)


def test_body_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for gender in ("neutral", "female"):
        write_smpl_assets(tmp_path / "DIR", 60, gender=gender)
    write_mano_assets(tmp_path / "DIR")
    names = {}
    exec(compile(python_of("body-models.md"), "body-models.md", "exec"), names)
    assert names["joints_24"].shape == (24, 3)
    assert names["joints"].shape == (14, 3)
    assert names["hand"].joints.shape == (1, 21, 3)
