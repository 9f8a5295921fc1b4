"""The plan of the house holds: who may import whom, what is never imported, and what importing costs."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import efface

ROOT = Path(efface.__file__).parent
SUBJECTS = ("pictures", "networks", "concepts", "generators", "judges", "retrieval")
FLOORS = [("io",), ("parts",), ("core",), ("training",), SUBJECTS, ("claims",), ("verbs",), ("app",)]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports(path):
    """Yield the full name of all that a file imports, anywhere in it, with the names taken from modules."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    """Return the room of a module `efface.ROOM...`, or None for the ground and for other packages."""
    parts = name.split(".")
    return parts[1] if parts[0] == "efface" and len(parts) > 1 and parts[1] in LEVEL else None


def inside(path):
    return path.relative_to(ROOT).parts


each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(inside(p)))


@each_file
def test_a_room_imports_only_from_floors_below(path):
    own = inside(path)[0]
    if len(inside(path)) == 1:  # the ground; `__init__` names the public API and `__main__` opens the command line
        above = {room(name) for name in imports(path)} - {None}
        assert not above or own in ("__init__.py", "__main__.py")
        return
    for name in imports(path):
        other = room(name)
        assert other is None or other == own or LEVEL[other] < LEVEL[own], f"{own} imports {name}"


@each_file
def test_methods_import_no_methods_and_claims_only_their_own(path):
    own, name = inside(path)[0], path.stem
    others = [i for i in imports(path) if room(i) in SUBJECTS or room(i) == "claims"]
    if own in SUBJECTS:
        assert not others
    elif own == "claims":
        assert [i for i in others if i.split(".")[2] != name] == []


@each_file
def test_nothing_unpickles_or_needs_torchvision(path):
    names = set(imports(path))
    assert not any(name.partition(".")[0] == "torchvision" for name in names)
    if inside(path) != ("io", "weights.py"):
        assert not {name.partition(".")[0] for name in names} & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
        calls = {ast.unparse(n.func) for n in ast.walk(TREES[path]) if isinstance(n, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "numpy.load", "np.load"}


def test_torchvision_is_not_installed():
    assert importlib.util.find_spec("torchvision") is None


def cost(code):
    """Run `code` in fresh processes; return the least CPU seconds it took and the packages it loaded."""
    script = (
        "import io, contextlib, json, sys, time\n"
        "start = time.process_time()\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n    {code}\n"
        "seconds = time.process_time() - start\n"
        "print(json.dumps([seconds, [m.partition('.')[0] for m in sys.modules]]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return min(seconds for seconds, _ in runs), set(runs[0][1])


HEAVY = {"torch", "numpy", "cv2", "PIL", "accelerate", "onnxruntime", "rapidocr", "safetensors", "matplotlib"}


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("import efface", 0.05),
        ("from efface.app.cli import run; run(['--help'])", 0.3),
        ("from efface.app.cli import run; run(['clean', '--help'])", 0.5),
        ("from efface.app.cli import run; run(['list'])", 0.5),
        ("from efface.app.cli import run; run(['show', 'strokefill'])", 0.5),
    ],
)
def test_what_only_reads_is_quick_and_loads_nothing_heavy(code, limit):
    seconds, loaded = cost(code)
    assert not loaded & HEAVY
    assert seconds <= limit


@pytest.mark.parametrize("name", efface.__all__)
def test_every_public_name_is_there_and_described(name):
    value = getattr(efface, name)
    assert name in dir(efface)
    assert isinstance(value, str) or value.__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'cleen'"):
        efface.cleen  # noqa: B018
