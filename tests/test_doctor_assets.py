"""``kinemesh doctor --assets DIR``: what is there, what is missing, and where it comes from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.doctor import examine_assets, has_complete_set
from kinemesh.errors import InputError
from tests.body_fixtures import write_mano_assets, write_smpl_assets


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["doctor", "--assets", str(folder)])
    return code, " ".join(capsys.readouterr().out.split())


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(tmp_path, capsys)
    assert code == 1
    for name in ("SMPL_NEUTRAL", "mesh_downsampling.npz", "J_regressor_h36m_correct.npy"):
        assert name in out
    for source in ("smpl.is.tue.mpg.de", "mano.is.tue.mpg.de", "microsoft/MeshGraphormer"):
        assert source in out
    assert "src/modeling/data" in out
    assert out.count("incomplete") == 2


@pytest.mark.parametrize("write", [lambda folder: write_smpl_assets(folder, 60), write_mano_assets])
def test_one_complete_set_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write
) -> None:
    path = write(tmp_path)
    code, out = run(tmp_path, capsys)
    assert code == 0
    assert path.name in out
    assert out.count("incomplete") == 1


def test_damage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mano_assets(tmp_path)
    (tmp_path / "mano_downsampling.npz").write_bytes(b"PK")
    code, out = run(tmp_path, capsys)
    assert code == 1
    assert "broken" in out
    assert "mano_downsampling.npz: expected an .npz file" in out


def test_a_damaged_file_that_is_compared_stands_in_the_way(tmp_path: Path) -> None:
    write_mano_assets(tmp_path)
    assert has_complete_set(examine_assets(tmp_path))
    (tmp_path / "mano_195_adjmat_values.pt").write_bytes(b"")
    checks = examine_assets(tmp_path)
    assert not has_complete_set(checks)
    assert [check.name for check in checks if check.status == "broken"] == [
        "mano_195_adjmat_{indices,size,values}.pt"
    ]


def test_a_damaged_file_that_is_optional_does_not(tmp_path: Path) -> None:
    write_smpl_assets(tmp_path, 60)
    (tmp_path / "SMPL_MALE.pkl").write_bytes(b"")
    (tmp_path / "J_regressor_extra.npy").unlink()
    assert has_complete_set(examine_assets(tmp_path))


@pytest.mark.parametrize("write", [lambda folder: write_smpl_assets(folder, 60), write_mano_assets])
def test_no_damage_ends_in_a_traceback(tmp_path: Path, write) -> None:
    folder = write(tmp_path).parent
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        empty = np.zeros(0)
        for damage in (b"", content[:100], {"a": torch.ones(1)}, empty, np.float64(2)):
            if isinstance(damage, bytes):
                path.write_bytes(damage)
            elif isinstance(damage, dict):
                torch.save(damage, path)
            else:
                with path.open("wb") as file:
                    np.save(file, damage)
            assert any(check.status == "broken" for check in examine_assets(folder)), path
        path.write_bytes(content)
    assert has_complete_set(examine_assets(folder))


def test_no_folder(tmp_path: Path) -> None:
    assert main(["doctor", "--assets", str(tmp_path / "absent")]) == 2
    with pytest.raises(InputError, match="expected a folder with body model files"):
        examine_assets(tmp_path / "absent")


def test_paths_are_in_one_piece(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / ("long" * 20)
    path = write_smpl_assets(folder, 60)
    (folder / "J_regressor_h36m_correct.npy").write_bytes(b"")
    main(["doctor", "--assets", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert f"ok: {path}" in lines
    assert any(
        line.startswith(f"broken: {folder / 'J_regressor_h36m_correct.npy'}: expected")
        for line in lines
    )


@pytest.mark.parametrize("change", [lambda held: held * 0, lambda held: held[:, :50]])
def test_a_regressor_that_does_not_fit_is_marked_itself(tmp_path: Path, change) -> None:
    write_smpl_assets(tmp_path, 60)
    path = tmp_path / "J_regressor_h36m_correct.npy"
    np.save(path, change(np.load(path)))
    checks = examine_assets(tmp_path)
    assert [c.name for c in checks if c.status == "broken"] == ["J_regressor_h36m_correct.npy"]
    assert not has_complete_set(checks)


def test_other_edges_are_those_of_the_second_record(tmp_path: Path) -> None:
    write_mano_assets(tmp_path)
    path = tmp_path / "mano_195_adjmat_indices.pt"
    indices = torch.load(path)
    first = int((indices[0] != indices[1]).nonzero()[0])
    row, column = indices[:, first].tolist()
    indices[1, first] = next(v for v in range(195) if v not in (row, column))
    torch.save(indices, path)
    checks = examine_assets(tmp_path)
    (broken,) = [check for check in checks if check.status == "broken"]
    assert broken.name == "mano_195_adjmat_{indices,size,values}.pt"
    assert "remove this one" in broken.place
