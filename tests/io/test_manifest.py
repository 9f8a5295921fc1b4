from __future__ import annotations

import json
import os

import pytest

from efface.errors import OutputError, UsageError
from efface.io.manifest import Manifest, options_hash, plan_outputs

OPTIONS = {"method": "strokefill", "grow": 3}


@pytest.fixture
def pair(tmp_path):
    source, output = tmp_path / "a.png", tmp_path / "out" / "a_clean.png"
    output.parent.mkdir()
    source.write_bytes(b"input")
    output.write_bytes(b"output")
    return source, output


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "manifest.jsonl"


def record(path, *items, options=OPTIONS):
    with Manifest(path, options) as manifest:
        for item in items:
            manifest.add(*item)


def done(path, source, output, options=OPTIONS):
    with Manifest(path, options) as manifest:
        return manifest.done(source, output)


def test_what_was_done_is_known_when_resumed(path, pair):
    record(path, (*pair, "done"))
    assert done(path, *pair)
    assert done(path, *map(os.path.relpath, pair))
    assert not done(path, *reversed(pair))


def test_each_line_is_on_the_disk_at_once(path, pair):
    with Manifest(path, OPTIONS) as manifest:
        manifest.add(*pair, "done", None, 1.23456)
        first, item = map(json.loads, path.read_text().splitlines())
    assert first == {"options": OPTIONS, "hash": options_hash(OPTIONS)}
    assert item["input"] == str(pair[0])
    assert (item["bytes"], item["output_bytes"], item["seconds"]) == (5, 6, 1.235)


@pytest.mark.parametrize("status", ["failed", "planned"])
def test_what_was_not_done_is_done_again(path, pair, status):
    record(path, (*pair, status, "too dark"))
    assert not done(path, *pair)
    assert json.loads(path.read_text().splitlines()[1])["reason"] == "too dark"


def test_the_last_line_about_an_input_counts(path, pair):
    record(path, (*pair, "failed", "x"), (*pair, "done"))
    assert done(path, *pair)


@pytest.mark.parametrize(
    "change",
    [
        lambda source, output: source.write_bytes(b"longer input"),
        lambda source, output: os.utime(source, ns=(1, 1)),
        lambda source, output: source.unlink(),
        lambda source, output: output.write_bytes(b"cut"),
        lambda source, output: output.unlink(),
    ],
    ids=["input size", "input time", "input gone", "output size", "output gone"],
)
def test_a_changed_input_or_output_is_done_again(path, pair, change):
    record(path, (*pair, "done"))
    change(*pair)
    assert not done(path, *pair)


def test_a_manifest_cut_at_any_byte_resumes(path, pair):
    record(path, (*pair, "done"), (pair[1], pair[0], "done"))
    whole = path.read_bytes()
    first, second = (whole.index(b"\n", start) for start in (len(whole.splitlines()[0]) + 1, len(whole) - 2))
    for end in sorted({*range(0, len(whole), 9), first, first + 1, second, second + 1}):
        path.write_bytes(whole[:end])
        assert done(path, *pair) == (end > first)
        assert done(path, *reversed(pair)) == (end > second)
        record_after = path.read_bytes()
        assert record_after.endswith(b"\n")
        assert all(json.loads(line) for line in record_after.splitlines())


def test_what_was_done_with_other_options_is_refused_by_name(path, pair):
    record(path, (*pair, "done"))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"grow was 3, now 4; new was None, now 'x'") as caught:
        Manifest(path, {**OPTIONS, "grow": 4, "new": "x"}).done(*pair)
    assert caught.value.where == str(path)
    assert path.read_bytes() == before


def test_options_may_hold_anything_that_has_a_name(path, tmp_path):
    options = {"mask": tmp_path, "boxes": ((1, 2, 3, 4),)}
    record(path, options=options)
    record(path, options=options)
    assert len(path.read_text().splitlines()) == 1


def test_runs_add_to_what_earlier_ones_wrote(path, pair, tmp_path):
    record(path, (*pair, "done"))
    other = tmp_path / "b.png", tmp_path / "b_clean.png"
    record(path, (other[0], other[1], "failed"), options={})
    assert done(path, *pair)
    assert Manifest(path, OPTIONS).made(pair[1])
    assert not Manifest(path, OPTIONS).made(other[1])


def test_an_output_is_of_a_run_once_it_was_made_or_might_have_been(path, pair):
    with Manifest(path, OPTIONS) as manifest:
        manifest.plan({pair[0]: pair[1]})
        assert manifest.made(pair[1])  # if the run is killed now
        manifest.add(*pair, "failed", "x")
        assert not manifest.made(pair[1])
        manifest.add(*pair, "done")
        manifest.add(*pair, "failed", "x")
        assert manifest.made(pair[1])
    assert Manifest(path, OPTIONS).made(pair[1])


@pytest.mark.parametrize(
    "text", ["shopping list\n", '{"a": 1}\n', '{"options": {}}\n{"input": "a"}\n', "[]\n", "x", "1\n", '{"a": 1}']
)
def test_other_files_are_refused_and_kept(path, tmp_path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UsageError, match="not a manifest"):
        Manifest(path, {})
    assert path.read_text() == text


def test_names_of_any_bytes_are_kept(path, tmp_path):
    source = tmp_path / os.fsdecode(b"\xff\n\xc3\xa4.png")
    source.write_bytes(b"x")
    record(path, (source, source, "done"))
    assert done(path, source, source)


def test_a_full_disk_is_an_output_error_and_leaves_whole_lines(path, pair, monkeypatch):
    with Manifest(path, OPTIONS) as manifest:
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OutputError, match="disk is full"):
            manifest.add(*pair, "done")
        assert path.read_bytes() == before


def test_a_link_in_place_of_the_manifest_is_refused(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link"):
        Manifest(path, {})


def test_outputs_keep_the_folders_below_their_root(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    inputs = [root / "a.png", root / "a.jpg", root / "b" / "a.png", tmp_path / "else" / "c.tar.png"]
    assert plan_outputs(inputs, out, roots=[root]) == {
        inputs[0]: out / "a_clean.png",
        inputs[1]: out / "a_clean.jpg",
        inputs[2]: out / "b" / "a_clean.png",
        inputs[3]: out / "c.tar_clean.png",
    }


def test_without_a_folder_results_lie_beside_their_inputs(tmp_path):
    inputs = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    assert list(plan_outputs(inputs, suffix="_boxes").values()) == [i.with_name("x_boxes.png") for i in inputs]


def test_two_inputs_never_share_an_output(tmp_path):
    inputs = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    with pytest.raises(UsageError, match="would both become"):
        plan_outputs(inputs, tmp_path / "out")
    with pytest.raises(UsageError, match="would both become"):
        plan_outputs(inputs, tmp_path / "out", roots=[tmp_path / "a", tmp_path / "b"])
    assert len(plan_outputs(inputs, tmp_path / "out", roots=[tmp_path])) == 2
    assert len(plan_outputs([inputs[0], inputs[0]], tmp_path / "out")) == 1


def test_results_of_an_earlier_run_are_no_inputs(tmp_path):
    inputs = [tmp_path / "a.png", tmp_path / "a_clean.png", tmp_path / "b_clean.png"]
    assert list(plan_outputs(inputs)) == [inputs[0], inputs[2]]


def test_existing_results_are_refused_before_the_work(tmp_path):
    inputs = [tmp_path / f"{i}.png" for i in range(5)]
    for i in range(4):
        (tmp_path / f"{i}_clean.png").touch()
    with pytest.raises(OutputError, match=r"4 of 5 results exist already: .*0_clean.*1_clean.*2_clean.png, \.\.\."):
        plan_outputs(inputs)
    assert len(plan_outputs(inputs, replaces=lambda path: True)) == 5


def test_links_out_of_the_output_folder_are_refused(tmp_path):
    for name in ("in/sub", "out", "else"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "else")
    with pytest.raises(OutputError, match="leads out"):
        plan_outputs([tmp_path / "in" / "sub" / "a.png"], tmp_path / "out", roots=[tmp_path / "in"])
