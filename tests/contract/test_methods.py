"""Every method of the catalogue keeps every promise: a new one is tested the moment its file exists."""

import pytest

from efface.core.catalogue import entries
from efface.core.contract import checks


@pytest.mark.parametrize(
    "check", [c for name in entries() for c in checks(name)], ids=lambda c: f"{c.method}: {c.name}"
)
def test_method_keeps(check):
    check.run()
