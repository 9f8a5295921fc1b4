"""The command line: its words, its exit codes, and what it says when something is wrong."""

import json
import subprocess
import sys

import pytest

from efface.app import cli
from efface.core.catalogue import entries
from efface.core.claim import Claim, Effect, Result
from efface.errors import OutputError, PictureError

METHODS = sorted(entries())


@pytest.fixture
def efface(capsys, monkeypatch, tmp_path):
    """Run `efface` with some words; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.run([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_help_lists_the_commands_in_order_of_use(efface):
    code, out, err = efface("--help")
    places = [out.index(f" {name} ") for name in cli.COMMANDS]
    assert (code, err) == (0, "")
    assert places == sorted(places)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_an_example(efface, command):
    code, out, _ = efface(command, "--help")
    assert code == 0
    assert f"Example: efface {command} " in out
    assert "--json" in out or command == "serve"
    assert all(line.count("  ") for line in out.splitlines() if line.startswith("│ --")), "an option without help"


@pytest.mark.parametrize("words", [["--version"], [], ["list"]])
def test_harmless_words_end_well(efface, words):
    code, out, err = efface(*words)
    assert code == 0
    assert out
    assert not err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cleen"], "Did you mean clean?"),
        (["xyz"], "Known: " + ", ".join(sorted(cli.COMMANDS)) + "\n"),
        (["list", "--searhc", "x"], "Did you mean --search? See: efface list --help"),
        (["show"], "requires an argument"),
        (["show", "strokefil"], "Did you mean strokefill"),
        (["list", "--subject", "picture"], "Did you mean pictures"),
        (["clean"], "requires an argument"),
        (["clean", "a.png", "--box", "1,2,3"], "x,y,w,h"),
        (["clean", "a.png", "--box", "0,0,0,5"], "at least 1"),
        (["clean", "a.png", "--remove", "rain"], "text"),
        (["clean", "a.png", "--fast", "--best"], "exclude each other"),
        (["clean", ""], "empty name"),
        (["clean", "a.png", "-o", ""], "empty name"),
        (["clean", "a.png", "--only", ""], "every text"),
        (["clean", "a.png", "--keep", "0,0,9"], "x,y,w,h"),
        (["clean", "a.png", "--mask", "m.png", "--only", "x"], "none is looked for"),
        (["score", "a.png"], "--inputs"),
        (["clean", "a.png", "--workers", "many"], "many"),
        (["check", "strokefill", "--seeds", "0;1"], "0,1,2"),
        (["check", "nobody"], "no method is called 'nobody'"),
        (["convert", "x.pth", "--method", "strokefill"], "--out"),
        (["convert", "x.pth", "--method", "strokefill", "-o", "w", "--set", "kernel"], "name=value"),
        (["convert", "x.pth", "--method", "strokefill", "-o", "w", "--set", "kernel=3"], "kernel"),
        (["fit", "recipe.toml"], "error: recipe.toml: this recipe cannot be read: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words_are_a_usage_error(efface, tmp_path, words, says):
    code, out, err = efface(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []

    code, out, err = efface(*words, "--json")
    assert code == 2
    assert err == ""
    assert json.loads(out)["error"]["type"] in ("UsageError", "UnknownNameError")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PictureError("is empty", where="a.png", fix="Give a picture"), 3, "error: a.png: is empty. Give a picture\n"),
        (OutputError("the disk is full", where="b.png"), 1, "error: b.png: the disk is full\n"),
        (OSError(28, "No space left on device", "c.png"), 1, "error: c.png: No space left on device\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_become_a_line_and_an_exit_code(efface, monkeypatch, error, code, says):
    def fail(*_args, **_given):
        raise error

    monkeypatch.setattr("efface.verbs.find.find", fail)
    assert efface("list") == (code, "", says)


def test_a_method_file_that_is_not_python_is_named(efface, install):
    install("class Darken(\n")
    code, out, err = efface("list")
    assert (code, out) == (2, "")
    assert "darken.py:1: is not Python" in err


def test_the_package_lists_its_public_names_alone():
    import efface

    assert dir(efface) == sorted(efface.__all__)


def test_the_process_itself_leaves_with_the_code():
    script = "import sys; sys.argv[0] = 'efface'; from efface.app.cli import main; main()"
    child = subprocess.run([sys.executable, "-c", script, "shwo"], capture_output=True, text=True)
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], METHODS),
        (["--search", "STROKES repair"], ["strokefill"]),
        (["--search", "no-such-word"], []),
        (["--subject", "pictures"], [n for n in METHODS if entries()[n].subject == "pictures"]),
        (["--task", "Text From Pictures"], [n for n in METHODS if entries()[n].card.task == "text from pictures"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_list_finds(efface, words, found):
    _, out, _ = efface("list", *words, "--json")
    assert [entry["name"] for entry in json.loads(out)] == found
    code, out, _ = efface("list", *words)
    assert code == 0
    assert all(name in out for name in found)


@pytest.mark.parametrize("name", METHODS)
def test_show_tells_all_that_is_known(efface, name):
    entry = entries()[name]
    code, out, _ = efface("show", name)
    assert code == 0
    for text in (entry.doc.partition("\n")[0], entry.card.paper, *(p.name for p in entry.params)):
        assert text in out
    _, out, _ = efface("show", name.replace("_", "-"), "--json")
    shown = json.loads(out)
    assert shown["card"] == entry.card.as_dict()
    assert [p["name"] for p in shown["params"]] == [p.name for p in entry.params]


@pytest.mark.parametrize(("shown", "quick", "code"), [(True, False, 0), (False, False, 1), (False, True, 0)])
def test_check_stores_shows_and_says_whether_it_showed(efface, monkeypatch, tmp_path, shown, quick, code):
    def measure(name, context):
        context.progress("working")
        effect = Effect("gain", "new at least 1 dB above old", {"new": [22.0, 23.0], "old": [20.0, 20.0]}, shown, "dB")
        return Result(name, Claim("It gains.", "old", 1, "made up"), [effect], list(context.seeds), "made up", 1.0)

    monkeypatch.setattr("efface.verbs.check.measure", measure)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **given: path.write_bytes(b"plot"))
    words = ["check", "strokefill", "--seeds", "3,4", *(["--quick"] if quick else [])]
    assert efface(*words)[0] == code
    written = sorted(p.name for p in tmp_path.rglob("*.*"))
    assert written == ([] if quick else ["strokefill.json", "strokefill.png"])

    got, out, err = efface(*words, "-o", "elsewhere", "--json")
    assert (got, err) == (code, "working\n")
    (result,) = json.loads(out)
    assert result == json.loads((tmp_path / "elsewhere/strokefill.json").read_text())
    assert (result["seeds"], result["shown"]) == ([3, 4], shown)
    assert "22.5 (22 to 23) dB" in efface("show", "strokefill", "--results", "elsewhere")[1]
