"""Runs over many pictures: plans, processes, a cluster, and going on after a sudden end."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efface.errors import MaskError, OutputError, UnknownNameError, UsageError, WeightsError
from efface.parts.text.detect import TextBox
from efface.verbs import clean, marking
from efface.verbs.batch import MANIFEST, clean_files
from efface.verbs.engines import ENGINES
from efface.verbs.gather import EARLIER, NOWHERE, UNKNOWN, gather, masks_of
from efface.verbs.rules import Rules

BOX = (8, 8, 20, 10)
RULES = Rules(boxes=[BOX])


@dataclass(frozen=True)
class Stub:
    """A job that says what a library would read in its process, or dies."""

    name: str

    def run(self, tell=None):
        if self.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name == "threads":
            import torch

            return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
        if self.name == "told":
            return os.environ["OMP_NUM_THREADS"]
        return self.name

    def failed(self, reason):
        return self.name, reason


def quiet(fraction, what):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Fill `in` with flat pictures that have a bar where BOX is, and work beside it."""
    monkeypatch.chdir(tmp_path)
    return lambda count=4: [sign(Path("in", f"{number}.png"), 100 + number % 100) for number in range(count)]


def sign(path, grey=200, size=(40, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), grey, np.uint8)
    pixels[10:16, 10:26] = 0
    Image.fromarray(pixels).save(path)
    return path


def contents(path="out"):
    """Return the bytes of all files below, but for the manifest."""
    files = (p for p in Path(path).rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def statuses(summary):
    return [item.status for item in summary.items]


def test_one_name_is_one_input(folder):
    source = sign(Path("in/a.png"))
    for inputs in (source, str(source)):
        assert [item.source for item in clean_files(inputs, RULES, out="out", overwrite=True).items] == [str(source)]


def test_results_keep_the_folders_and_the_order_of_their_pictures(folder):
    sign(Path("in/b/c/2.bmp"))
    sign(Path("in/a.png"))
    sign(Path("in/.hidden/3.png"))
    told = []
    summary = clean_files(["in"], RULES, out="out", progress=lambda *told_now: told.append(told_now))
    assert sorted(contents()) == ["a_clean.png", "b/c/2_clean.bmp"]
    assert [item.source for item in summary.items] == ["in/a.png", "in/b/c/2.bmp"]
    assert [told[0], told[-1]] == [(0.0, 2, "a.png: reading"), (2.0, 2, "in/b/c/2.bmp")]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert any(0 < done < 1 for done, _, _ in told)
    assert json.loads(json.dumps(summary.as_dict()))["done"] == 2


def test_what_runs_leave_beside_the_pictures_is_no_input(folder):
    sources = folder(2)
    assert statuses(clean_files(["in"], RULES, dry_run=True)) == ["done"] * 2
    assert statuses(clean_files(["in"], RULES)) == ["done"] * 2
    sign(Path("in/efface-before-after.jpg"))
    for dry_run in (False, True):
        again = clean_files(["in"], RULES, overwrite=True, dry_run=dry_run)
        assert [item.source for item in again.items] == [str(source) for source in sources]


def test_a_preview_takes_the_place_of_earlier_previews_alone(folder):
    (source,) = folder(1)
    for rules in (RULES, Rules(boxes=[(0, 0, 5, 5)])):
        (item,) = clean_files([source], rules, dry_run=True).items
        assert (item.status, item.output) == ("done", "in/0_boxes.png")
    mine = sign(source.with_name("0_boxes.png")).read_bytes()
    assert clean_files([source], RULES, dry_run=True).exit_code == OutputError.exit_code
    assert source.with_name("0_boxes.png").read_bytes() == mine
    assert statuses(clean_files(["in"], RULES, out="out")) == ["done"] * 2  # it is a picture like others
    sign(Path("in/0.bmp"))
    previews = [item.output for item in clean_files(["in"], RULES, out="seen", dry_run=True).items]
    assert sorted(previews) == ["seen/0.bmp_boxes.png", "seen/0.png_boxes.png", "seen/0_boxes.png_boxes.png"]


@pytest.mark.parametrize(("names", "out"), [(["0.png", "0_clean.png"], None), (["0.png"], "in/../in/0.png")])
def test_no_result_takes_the_place_of_an_input(folder, names, out):
    folder(1)
    sign(Path("in/0_clean.png"))
    before = contents("in")
    with pytest.raises(UsageError, match="is an input"):
        clean_files([f"in/{name}" for name in names], RULES, out=out, overwrite=True)
    assert contents("in") == before


def test_results_that_a_shell_names_are_left_out(folder):
    sources = folder(2)
    clean_files(["in"], RULES)
    again = clean_files(sorted(Path("in").glob("*.png")), RULES, resume=True)
    assert [item.source for item in again.items] == [str(source) for source in sources]
    assert again.left_out == dict.fromkeys(["in/0_clean.png", "in/1_clean.png"], EARLIER)


def test_files_that_are_left_out_are_told_with_the_reason(folder):
    folder(2)
    sign(Path("in/efface-logo.png"))
    Path("in/notes.txt").touch()
    Path("in/gone.png").symlink_to("nothing.png")
    clean_files(["in/0.png"], RULES, dry_run=True)
    summary = clean_files(["in"], RULES, out="out")
    assert [item.source for item in summary.items] == ["in/0.png", "in/1.png", "in/efface-logo.png"]
    assert summary.left_out == {"in/0_boxes.png": EARLIER, "in/notes.txt": UNKNOWN, "in/gone.png": NOWHERE}
    assert summary.as_dict()["left_out"] == summary.left_out


def test_a_preview_draws_what_goes_and_not_what_is_kept(folder):
    (source,) = folder(1)
    clean_files([source], Rules(boxes=[(0, 0, 60, 40)], keep=["30,0,30,40"]), dry_run=True)
    drawn = np.asarray(Image.open("in/0_boxes.png")).astype(int)
    red = drawn[..., 0] - drawn[..., 1] > 90
    assert red[:, 29].all()
    assert not red[:, 31:].any()


def test_a_single_picture_may_be_given_a_name_and_several_may_not(folder):
    folder(2)
    assert clean_files(["in/0.png"], RULES, out="new/x.bmp").exit_code == 0
    assert clean_files(["in/0.png"], RULES, out="new/y.bmp", resume=True).exit_code == 0
    assert sorted(contents("new")) == ["x.bmp", "y.bmp"]
    for inputs in (["in"], ["in/*.png"], ["in/0.png", "in/1.png"]):
        with pytest.raises(UsageError, match="Name a folder"):
            clean_files(inputs, RULES, out="z.png")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"workers": 0}, UsageError, "1 or more"),
        ({"engine": "rai"}, UnknownNameError, "ray"),
        ({"inputs": ["nothing/*.png"]}, UsageError, "no pictures"),
        ({"inputs": ["in/empty"]}, UsageError, "no pictures"),
        ({"rules": Rules(weights="in")}, WeightsError, "card.json"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(folder, given, error, says):
    folder(2)
    Path("in/empty").mkdir()
    with pytest.raises(error, match=says):
        clean_files(**{"inputs": ["in"], "rules": RULES, "out": "out", **given})
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("rules", "error", "says"),
    [
        ({"method": "ste"}, UsageError, "no weights for ste"),
        ({"device": "cuda"}, UsageError, "not available"),
        ({"memory": 5_000_000}, UsageError, "Allow at least"),
        ({"iterations": 3}, UsageError, "not iterative"),
        ({"mask": "nowhere"}, MaskError, "no such file or folder"),
    ],
)
def test_what_no_picture_could_be_cleaned_by_is_refused_once(folder, rules, error, says):
    folder(2)
    with pytest.raises(error, match=says):
        clean_files(["in"], Rules(**rules), out="out")
    assert not Path("out").exists()


@pytest.mark.parametrize(("given", "name"), [("in/0.png", "new.heic"), ("in", "new.svg")])
def test_a_name_of_no_known_format_is_refused_before_the_work(folder, given, name):
    folder(1)
    with pytest.raises(OutputError, match="no format"):
        clean_files([given], RULES, out=name)
    assert not Path(name).exists()


def test_patterns_folders_and_names_may_be_mixed_and_overlap(folder):
    sources = folder(3)
    given = gather(["in/1.png", "in/[01].png", "in", Path("in/2.png")])
    assert given.pictures == [sources[1], sources[0], sources[2]]
    odd = sign(Path("in/[odd].png"))
    assert gather([str(odd)]).pictures == [odd]


def test_each_picture_has_its_mask_in_a_folder_of_masks(folder):
    folder(4)
    Path("masks").mkdir()
    for name, width in (("0.png", 60), ("1.bmp", 60), ("1.tif", 60), ("2.png", 50), ("3.txt", 60)):
        Image.new("L", (width, 40)).save(f"masks/{name}", "PNG")
    own, two, other, none = clean_files(["in"], Rules(mask="masks"), out="out").items
    assert own.status == "done"
    assert two.reason.startswith("in/1.png: masks: 2 masks for 1.png")
    assert other.reason.startswith("in/2.png: masks/2.png: the mask has 50 x 40 pixels")
    assert none.reason.startswith("in/3.png: masks: no masks for 3.png")
    assert list(contents()) == ["0_clean.png"]


def test_masks_lie_where_pictures_do_and_namesakes_share_none(folder):
    for name in ("a.png", "x/a.png", "y/a.png", "x/b.png", "masks/a.png", "masks/y/a.png", "masks/b.png"):
        sign(Path(name) if "masks" in name else Path("in", name))
    found = masks_of(gather(["in"]).pictures, [Path("in")], Path("masks"))
    assert {str(p): list(map(str, masks)) for p, masks in found.items()} == {
        "in/a.png": ["masks/a.png"],
        "in/x/a.png": [],
        "in/x/b.png": ["masks/b.png"],
        "in/y/a.png": ["masks/y/a.png"],
    }


def test_one_mask_may_be_for_all(folder):
    folder(2)
    Image.fromarray(np.pad(np.ones((10, 20), bool), ((8, 22), (8, 32)))).save("mask.png")
    clean_files(["in"], Rules(mask="mask.png"), out="out")
    clean_files(["in"], RULES, out="boxes")
    assert contents("out") == contents("boxes")


def test_resuming_tries_again_what_failed_or_changed_and_nothing_else(folder):
    sources = folder(4)
    sources[1].write_bytes(b"no picture")
    first = clean_files(["in"], RULES, out="out")
    assert (statuses(first), first.exit_code) == (["done", "failed", "done", "done"], 1)
    times = {p: p.stat().st_mtime_ns for p in Path("out").glob("*.png")}
    sign(sources[1])
    sign(sources[2], 7)
    Path("out/3_clean.png").unlink()
    told = []
    second = clean_files(["in"], RULES, out="out", resume=True, progress=lambda done, total, _: told.append(total))
    assert statuses(second) == ["skipped", "done", "done", "done"]
    assert (set(told), second.exit_code) == ({3}, 0)
    assert Path("out/0_clean.png").stat().st_mtime_ns == times[Path("out/0_clean.png")]
    assert np.asarray(Image.open("out/2_clean.png"))[12, 12, 0] == 7
    with pytest.raises(UsageError, match="other options"):
        clean_files(["in"], Rules(boxes=[(0, 0, 5, 5)]), out="out", resume=True)


def test_resuming_what_never_began_overwrites_nothing(folder):
    folder(2)
    sign(Path("out/0_clean.png"), 1)
    before = contents()
    with pytest.raises(OutputError, match="exist already"):
        clean_files(["in"], RULES, out="out", resume=True)
    assert contents() == before


def test_resuming_replaces_what_a_run_made_and_nothing_else(folder):
    folder(2)
    clean_files(["in"], RULES, out="out")
    sign(Path("in/new.png"))
    before = sign(Path("out/new_clean.png"), 1).read_bytes()
    with pytest.raises(OutputError, match="1 of 3 results exist already: out/new_clean"):
        clean_files(["in"], RULES, out="out", resume=True)
    assert Path("out/new_clean.png").read_bytes() == before


def test_a_folder_remembers_all_runs_into_it(folder):
    folder(2)
    sign(Path("more/a.png"))
    sign(Path("more/b.png"))
    clean_files(["in"], RULES, out="out")
    clean_files(["more"], Rules(boxes=[(0, 0, 5, 5)]), out="out")
    assert statuses(clean_files(["in"], RULES, out="out", resume=True)) == ["skipped"] * 2
    Path("out", MANIFEST).write_text("a list of mine")
    with pytest.raises(UsageError, match="not a manifest"):
        clean_files(["in"], RULES, out="out", overwrite=True)


def test_the_record_lies_in_the_folder_of_the_pictures_or_in_the_current_one(folder):
    sign(Path("in/x/0.png"))
    sign(Path("in/x/1.png"))
    sign(Path("in/y/2.png"))
    for inputs, place in ((["in"], "in"), (["in/x/0.png", "in/x/1.png"], "in/x"), (["in/x", "in/y/2.png"], ".")):
        assert clean_files(inputs, RULES, overwrite=True).folder == Path(place)
        assert Path(place, MANIFEST).is_file()
        assert set(statuses(clean_files(inputs, RULES, resume=True))) == {"skipped"}
        Path(place, MANIFEST).unlink()


def test_pictures_from_which_nothing_goes_are_copied_as_files(folder):
    folder(1)
    Path("in/0.png").unlink()
    for name in ("a.jpg", "b.webp", "c.png"):
        Image.radial_gradient("L").save(Path("in", name), quality=31)
    Image.new("L", (256, 256)).save("black.png")
    summary = clean_files(["in"], Rules(mask="black.png"), out="out")
    assert sorted(contents("in").values()) == sorted(contents("out").values())
    assert not any("inexactly" in note for item in summary.items for note in item.details["notes"])
    (item,) = clean_files(["in/c.png"], Rules(mask="black.png"), out="out/c.jpg").items
    assert "JPEG stores pixels inexactly" in item.details["notes"][-1]


KILLED = """
import os, signal, sys
from efface.verbs.batch import clean_files
from efface.verbs.rules import Rules
link, count = os.link, 0
def kill_at(source, target):
    global count
    count += 1
    if count == 3 and sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target)
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
os.link = kill_at
clean_files(["in"], Rules(mask="black.png"), out="out")
"""


@pytest.fixture
def nothing(folder):
    """Return rules that take nothing away, which needs no torch in a new process."""
    Image.new("L", (60, 40)).save("black.png")
    return Rules(mask="black.png")


@pytest.mark.parametrize("when", ["before", "after"])
def test_after_kill_9_nothing_is_torn_and_only_the_picture_at_work_is_done_again(folder, nothing, when):
    folder(6)
    child = subprocess.run([sys.executable, "-c", KILLED, when], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (-signal.SIGKILL, "")
    names = [f"{number}_clean.png" for number in range(6)]
    assert sorted(p.name for p in Path("out").glob("[0-9]*")) == names[: 2 + (when == "after")]
    left = {p: p.stat().st_mtime_ns for p in map(Path("out").joinpath, names[:2])}
    summary = clean_files(["in"], nothing, out="out", resume=True)
    assert statuses(summary) == ["skipped"] * 2 + ["done"] * 4
    assert {p: p.stat().st_mtime_ns for p in left} == left
    clean_files(["in"], nothing, out="whole")
    assert contents() == contents("whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_run_leaves_its_record_and_no_process(folder, nothing, workers):
    folder(5)

    def stop(done, total, what):
        if what.startswith("in/"):  # the first one has ended
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean_files(["in"], nothing, out="out", workers=workers, progress=stop)
    assert not multiprocessing.active_children()
    assert not [p for p in Path("out").iterdir() if p.name.startswith(".")]
    summary = clean_files(["in"], nothing, out="out", resume=True)
    assert (summary.count("skipped"), summary.count("done")) == (1, 4)


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers_without_a_word_too_many(folder):
    folder(400)
    script = "from efface.app.cli import main; main()"
    words = ["clean", "in", "-o", "out", "--box", "8,8,20,10", "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", script, *words], start_new_session=True, text=True, **pipes)
    while not (Path("out").is_dir() and len(os.listdir("out")) > 3):
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = child.communicate(timeout=60)  # until the last process that could write into the pipes is gone
    assert (child.returncode, out, err) == (130, "", "stopped\n")
    assert not [p for p in Path("out").iterdir() if p.name.startswith(".")]
    assert clean_files(["in"], RULES, out="out", resume=True).count("failed") == 0


def test_workers_write_the_same_bytes_as_one_process(folder, weights):
    draw = np.random.default_rng(0)
    Path("in").mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (40, 60 + number, 3), np.uint8)).save(f"in/{number}.png")
    Path("in/bad.png").write_bytes(b"")
    rules = Rules(boxes=[BOX], weights=weights / "strokefill")
    serial = clean_files(["in"], rules, out="serial")
    parallel = clean_files(["in"], rules, out="parallel", workers=2)
    assert contents("serial") == contents("parallel")
    assert [(i.source, i.status, i.reason, i.exit_code) for i in serial.items] == [
        (i.source, i.status, i.reason, i.exit_code) for i in parallel.items
    ]


def test_a_killed_worker_takes_one_job_along():
    jobs = [Stub("a"), Stub("deadly"), Stub("b"), Stub("deadly"), Stub("c")]
    ended = list(ENGINES["local"](jobs, 2, quiet))
    names = [end if isinstance(end, str) else end[0] for end in ended]
    assert sorted(names) == ["a", "b", "c", "deadly", "deadly"]
    assert all("killed" in reason and "--memory" in reason for _, reason in (e for e in ended if len(e) == 2))


def test_workers_share_the_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert (1, "1") in list(ENGINES["local"]([Stub("threads"), Stub("x")], 2, quiet))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert list(ENGINES["local"]([Stub("told"), Stub("told")], 2, quiet)) == ["5", "5"]


def test_pictures_whose_texts_stay_are_copied(folder, monkeypatch):
    folder(2)
    box = TextBox(np.array([(8, 8), (28, 8), (28, 18), (8, 18)], np.float32), "Sale", 0.9)
    monkeypatch.setattr(marking, "find_text", lambda pixels: [box])
    monkeypatch.setattr(clean, "load_network", lambda *network: None)
    summary = clean_files(["in"], Rules(keep=["Sale"]), out="out")
    assert statuses(summary) == ["done", "done"]
    assert summary.items[0].details["texts"][0]["stays"] == "words to keep"
    assert np.array_equal(Image.open("out/0_clean.png"), Image.open("in/0.png"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray about itself
def test_ray_does_what_one_process_does(folder, weights):
    ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no other process can import the tests
    folder(3)
    Path("in/bad.png").write_bytes(b"")
    rules = Rules(boxes=[BOX], weights=weights / "strokefill")
    serial = clean_files(["in"], rules, out="serial")
    spread = clean_files(["in"], rules, out="ray", engine="ray", workers=2)
    assert contents("serial") == contents("ray")
    assert [(i.status, i.reason, i.exit_code) for i in serial.items] == [
        (i.status, i.reason, i.exit_code) for i in spread.items
    ]
    ended = list(ENGINES["ray"]([Stub("a"), Stub("deadly"), Stub("b")], 2, quiet))
    ((name, reason),) = (end for end in ended if isinstance(end, tuple))
    assert (len(ended), name) == (3, "deadly")
    assert "killed" in reason
