"""The verb: from a recipe on disk to weights on disk."""

from __future__ import annotations

import json

import pytest
from toy import Noise, Toy, same, weights

from efface.core.run import Run
from efface.errors import OutputError, UsageError
from efface.verbs import fit as verb
from efface.verbs.fit import fit

RECIPE = 'method = "toy"\n[params]\nwidth = 3\n[train]\nsteps = 4\nbatch = 2\n'
PLAN = {"steps": 4, "batch": 2}


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """A recipe in the present folder, for a catalogue and sources that know the toy alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("efface.verbs.fit.get", lambda name: Toy)
    monkeypatch.setattr("efface.parts.data.source", lambda name, **options: Noise())
    (tmp_path / "small.toml").write_text(RECIPE)
    return "small.toml"


def test_trains_into_a_folder_of_the_recipes_name(recipe, capsys):
    run = fit(recipe, data="/a/b/photos", seed=5, set=["train.lr=0.01"], device="cpu")
    assert run.path.as_posix() == "runs/small"
    assert run.finished
    stored = Run.open(run.path).recipe
    assert (stored["train"]["seed"], stored["train"]["lr"], stored["params"]["width"]) == (5, 0.01, 3)
    assert stored["data"] == {"source": Toy.trains_on, "folder": "photos"}
    assert "versions" in json.loads((run.path / "recipe.json").read_text())
    assert capsys.readouterr().out == "Weights: runs/small/weights\n"


def test_dry_run_forecasts_and_writes_nothing(recipe, tmp_path, capsys):
    fit(recipe, dry_run=True, steps=7200, device="cpu")
    said = capsys.readouterr().out
    assert "157 parameters" in said
    assert "7,200" in said
    assert [p.name for p in tmp_path.iterdir()] == [recipe]


def test_run_is_neither_overwritten_nor_resumed_otherwise(recipe):
    said: list[str] = []
    run = fit(recipe, out="r", device="cpu", progress=None)
    before = weights(run)
    with pytest.raises(OutputError, match="Resume it"):
        fit(recipe, out="r", device="cpu")
    with pytest.raises(UsageError, match=r"train\.seed, train\.steps changed"):
        fit(recipe, out="r", device="cpu", resume=True, steps=9, seed=9)
    with pytest.raises(UsageError, match="no run"):
        fit(recipe, out="elsewhere", device="cpu", resume=True)
    assert fit(recipe, out="r", device="cpu", resume=True, progress=said.append).finished
    assert said == ["Finished already: r/weights"]
    assert same(before, weights(run))


def test_hyper_parameter_that_is_new_since_does_not_hinder_resuming(recipe):
    run = Run.create("r", {"method": "toy", "data": {"source": Toy.trains_on}, "params": {"width": 3}, "train": PLAN})
    assert fit(recipe, out="r", device="cpu", resume=True, progress=None).path == run.path


def test_run_that_fails_before_anything_is_logged_can_begin_again(recipe, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="tpu"):
        fit(recipe, out="r", device="tpu", progress=None)
    assert not (tmp_path / "r").exists()

    def bad(*_given):
        raise ValueError("bad picture")

    (tmp_path / "r").mkdir()
    (tmp_path / "r/mine").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Noise, "batch", bad)
        with pytest.raises(ValueError, match="bad picture"):
            fit(recipe, out="r", device="cpu", progress=None)
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["mine"]
    assert fit(recipe, out="r", device="cpu", progress=None).finished


def test_a_recipe_is_suggested_by_its_methods_name(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/toy.toml").touch()
    with pytest.raises(UsageError, match=r"No such file.*Did you mean recipes/toy\.toml\?"):
        fit("toy")


def test_stopped_run_says_how_to_go_on(recipe, monkeypatch, capsys):
    monkeypatch.setattr("efface.training.loop.train", lambda *a, **k: False)
    assert not fit(recipe, device="cpu").finished
    assert "--resume" in capsys.readouterr().out


def test_what_is_no_network_is_refused(recipe, monkeypatch):
    class Editor(Toy.__mro__[2]):
        pass

    monkeypatch.setattr(verb, "get", lambda name: Editor)
    with pytest.raises(UsageError, match="not a network"):
        fit(recipe, set=["params={}"])
