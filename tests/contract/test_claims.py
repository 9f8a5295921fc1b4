"""Every claim runs from its first line to its last, and what it finds can be stored and read again."""

import importlib.util

import pytest

from efface.core.catalogue import entries
from efface.core.claim import load_result
from efface.verbs.check import check, store

CLAIMS = [name for name, e in entries().items() if importlib.util.find_spec(f"efface.claims.{e.stem}")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_claim_runs_and_is_stored(name, tmp_path):
    lines: list[str] = []
    result = check(name, seeds=(0,), quick=True, progress=lines.append)
    assert result.effects
    assert all(values for effect in result.effects for values in effect.measured.values())
    assert load_result(store(result, tmp_path)[0]) == result
