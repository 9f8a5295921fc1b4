"""Settings of all tests: one thread per worker, nothing taken from the network, and slow machines are forgiven."""

import importlib
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings

from efface.core import catalogue

settings.register_profile("efface", deadline=None, derandomize=True)
settings.load_profile("efface")


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
