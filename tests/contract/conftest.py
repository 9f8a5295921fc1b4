"""Methods of another package, for the time of a test."""

import importlib
import sys

import pytest

from efface.core import catalogue


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a method as another package would, by default under the name `darken`, and forget it afterwards."""

    def write(source, name="darken"):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/__init__.py").touch()
        (tmp_path / f"elsewhere/{name}.py").write_text(source)
        info = tmp_path / "elsewhere-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[efface.methods]\n{name} = elsewhere.{name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        catalogue.entries.cache_clear()

    yield write
    catalogue.entries.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == "elsewhere"]:
        del sys.modules[name]
    importlib.invalidate_caches()
