"""Of equally good weights PRTR keeps the later ones, as published; others keep the first."""

import json

import pytest

from kinemesh.training import train
from kinemesh.training.prtr_task import PrtrTask
from tests.tiny_prtr_recipes import tiny, write_data


@pytest.mark.parametrize(("later", "expected"), [(True, 4), (False, 1)])
def test_of_equal_scores(later, expected, tmp_path, monkeypatch):
    write_data(tmp_path)
    scores = iter([0.5, 0.5, 0.7, 0.5])
    monkeypatch.setattr(PrtrTask, "validate", lambda *_: {"missing": next(scores)})
    monkeypatch.setattr(PrtrTask, "picture", lambda *_: None)
    assert PrtrTask.later_is_better.fget is not None
    if not later:
        monkeypatch.setattr(PrtrTask, "later_is_better", False)
    recipe = tiny("prtr-mpii-w32-256x256", tmp_path, tmp_path / "run", steps=4, batch_size=2)
    recipe.validation_data, recipe.validate_every = recipe.data, 1
    result = train(recipe)
    best = json.loads((result.best.parent / "metrics.json").read_text())
    assert best == {"step": expected, "metrics": {"missing": 0.5}}
