"""The repository speaks of itself alone, and is complete."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from efface.core.catalogue import entries
from efface.core.claim import load_result

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".cfg", ".yml", ".yaml", ".html", ".css", ".js", ".svg", ""}
PRIVATE = re.compile(r"(?<![\w.:/-])/(?:home|root|work|Users|tmp|mnt|media)/[\w.-]+|\b[A-Z]:\\Users\\")


def tracked():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_private_paths():
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.suffix in TEXT and path.name != "LICENSE"
        for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs/architecture.md"])
def test_what_a_visitor_looks_for_is_there(name):
    assert (ROOT / name).stat().st_size > 500


def test_constraints_pin_everything_once_and_in_order():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)


def test_generated_pages_are_up_to_date():
    pages = runpy.run_path(str(ROOT / "docs/build.py"))["pages"]()
    stale = [
        str(path.relative_to(ROOT))
        for path, text in pages.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `make docs`"


def test_stored_results_are_of_known_methods():
    for path in (ROOT / "results").glob("*.json"):
        if "claim" in json.loads(path.read_text("utf-8")):
            assert load_result(path).method in entries()
