from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from efface.errors import OutputError
from efface.io import atomic
from efface.io.atomic import atomic_write, check_target, inside, write_bytes, write_json, write_text

# Forks children that save two contents in turn, and kills each at another moment of its work.
KILLS = """
import os, signal, sys, time
from efface.io.atomic import write_bytes
path, contents = sys.argv[1], [b"a" * 300_000, b"b" * 200_000]
write_bytes(path, contents[0])
torn = 0
for turn in range(100):
    child = os.fork()
    if child == 0:
        while True:
            for content in contents:
                write_bytes(path, content, overwrite=True)
    time.sleep(0.001 + turn % 10 * 0.0007)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += open(path, "rb").read() not in contents
sys.exit(torn)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_hundred_kills_tear_nothing_and_leave_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", KILLS, tmp_path / "file"], check=True, timeout=60)
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["file", "other"]


def test_the_helpers_write_what_they_are_given(tmp_path):
    write_bytes(tmp_path / "deep" / "down" / "b", b"\0\n")
    write_text(tmp_path / "t", "ü\r\n")
    write_json(tmp_path / "j", {"ü": [1, 2]})
    assert (tmp_path / "deep" / "down" / "b").read_bytes() == b"\0\n"
    assert (tmp_path / "t").read_bytes() == "ü\r\n".encode()
    assert json.loads((tmp_path / "j").read_text("utf-8")) == {"ü": [1, 2]}
    assert names(tmp_path) == ["deep", "j", "t"]


def test_the_temporary_is_beside_the_target_and_has_its_suffix(tmp_path):
    with atomic_write(tmp_path / "picture.png") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert not (tmp_path / "picture.png").exists()


def test_files_get_the_permissions_that_open_would_give(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_content_and_no_temporary(tmp_path, error):
    write_text(tmp_path / "file", "old")

    def save():
        with atomic_write(tmp_path / "file", overwrite=True) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(type(error)):
        save()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_existing_file_is_refused_before_the_work(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(OutputError, match="exists already"), atomic_write(tmp_path / "file"):
        pytest.fail("the work began")
    write_text(tmp_path / "file", "new", overwrite=True)
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _raise(errno.EPERM))

    def save():
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("ours")
            (tmp_path / "file").write_text("theirs")

    with pytest.raises(OutputError, match="exists already"):
        save()
    assert (tmp_path / "file").read_text() == "theirs"
    assert names(tmp_path) == ["file"]


def test_file_systems_without_links_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _raise(errno.EOPNOTSUPP))
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", ["file", "missing"])
def test_links_are_not_written_through(tmp_path, overwrite, target):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match="is a link"):
        write_text(tmp_path / "link", "new", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "link"]


def test_a_link_out_of_the_root_is_refused(tmp_path):
    for name in ("root", "other", "root/real"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "other")
    (tmp_path / "root" / "in").symlink_to(tmp_path / "root" / "real")
    root = tmp_path / "root"
    assert inside(root, root / "in" / "file")
    assert not inside(root, root / "out" / "file")
    assert not inside(root, root / ".." / "file")
    with pytest.raises(OutputError, match="leads out"), atomic_write(root / "out" / "file", root=root):
        pytest.fail("the work began")
    assert names(tmp_path / "other") == []


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError):
        check_target(tmp_path / "a" / "file", root=tmp_path)
    with pytest.raises(OutputError):
        write_text(tmp_path / "a" / "file", "")


def test_impossible_places_say_why(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in [
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "below", "a file stands"),
        (tmp_path / "file" / "below" / "deeper", "a file stands"),
        (tmp_path / ("n" * 300), "name is too long"),
    ]:
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=reason) as caught:
                write_text(path, "", overwrite=overwrite)
            assert caught.value.where == str(path)
            assert caught.value.fix
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "cannot be written"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failing_disk_says_why_and_keeps_the_old(tmp_path, monkeypatch, number, reason, call):
    write_text(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _raise(number))
        with pytest.raises(OutputError, match=reason) as caught:
            write_text(tmp_path / "file", "new", overwrite=True)
    assert caught.value.where == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_in_the_block_is_an_output_error(tmp_path):
    with (
        pytest.raises(OutputError, match="disk is full"),
        atomic_write(tmp_path / "file"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert names(tmp_path) == []


def test_errors_about_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file"):
        (tmp_path / "input").read_bytes()
    assert names(tmp_path) == []


def test_only_the_leftovers_of_dead_processes_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, theirs = (tmp_path / f"{atomic._prefix()}{number}-0.png" for number in (os.getpid(), dead.pid))
    elsewhere = tmp_path / f".efface-ffffffff-{dead.pid}-0.png"
    for path in (mine, theirs, elsewhere):
        path.touch()
    write_text(tmp_path / "file", "")
    assert set(names(tmp_path)) == {"file", mine.name, elsewhere.name}


def _raise(number: int):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail
