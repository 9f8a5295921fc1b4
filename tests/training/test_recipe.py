"""Recipes: what they hold, and what is said about wrong ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from efface.errors import EffaceError, UsageError
from efface.training.recipe import Recipe, Train, load_recipe

WHOLE = """
method = "toy"
[params]
width = 8
[data]
source = "noise"
folder = "/somewhere/pictures"
[train]
steps = 30
betas = [0.5, 0.9]
schedule = "cosine"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "toy.toml"
        path.write_text(text)
        return path

    return write


def test_reads_every_table_and_survives_json(write):
    recipe = load_recipe(write(WHOLE))
    assert recipe.params == {"width": 8}
    assert recipe.train == Train(steps=30, betas=(0.5, 0.9), schedule="cosine")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_shows_others_the_folders_name_alone(write):
    recipe = load_recipe(write(WHOLE))
    assert recipe.portable().data == {"source": "noise", "folder": "pictures"}
    assert not recipe.differences(recipe.portable())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("train.lr=3e-4", lambda r: r.train.lr == 3e-4),
        ("train.betas=[0.0, 0.9]", lambda r: r.train.betas == (0.0, 0.9)),
        ("train.dtype=bfloat16", lambda r: r.train.dtype == "bfloat16"),
        ('params.look = "a=b"', lambda r: r.params == {"width": 8, "look": "a=b"}),
        ("data.size=64", lambda r: r.data["size"] == 64),
    ],
)
def test_changes_from_the_command_line(write, change, found):
    assert found(load_recipe(write(WHOLE), [change]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method = ", "not TOML"),
        ("[train]\nsteps = 1", "names no method"),
        ('method = "toy"\ntrain = 3', "not a table"),
        ('method = "toy"\n[trian]\nsteps = 1', "Did you mean train"),
        ('method = "toy"\n[train]\nstep = 1', "Did you mean steps"),
        ('method = "toy"\n[train]\nsteps = 0', "train.steps: 0 is outside"),
        ('method = "toy"\n[train]\nsteps = 1.5', "not a whole number"),
        ('method = "toy"\n[train]\nlr = nan', "outside"),
        ('method = "toy"\n[train]\nschedule = "linear"', "not one of constant, cosine, onecycle"),
        ('method = "toy"\n[train]\nbetas = [0.9]', "not two numbers"),
        ('method = "toy"\n[train]\nbetas = ["a", "b"]', "train.betas"),
        ('method = "toy"\n[train]\nnesterov = true', "needs sgd with momentum"),
        ('method = "toy"\n[train]\ndrops = [1.5]', "train.drops: 1.5 is outside"),
    ],
)
def test_wrong_recipe_says_what_and_where(write, text, says):
    path = write(text)
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("change", ["train.lr", "=3", "method.x=3", "train.sed=1"])
def test_wrong_change_is_refused(write, change):
    with pytest.raises(UsageError):
        load_recipe(write(WHOLE), [change])


@pytest.mark.parametrize("name", ["missing.toml", ".", "binary.toml"])
def test_file_that_cannot_be_read(tmp_path, name):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EffaceError, match="cannot be read"):
        load_recipe(tmp_path / name)


def test_differences_name_what_is_learned_otherwise(write):
    recipe = load_recipe(write(WHOLE))
    train = dataclasses.replace(recipe.train, lr=1.0, workers=9, log_every=1)
    other = dataclasses.replace(recipe, train=train, params={"width": 9})
    assert other.differences(recipe) == recipe.differences(other) == ["params.width", "train.lr"]
