"""`efface serve` from the outside."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from efface.app import cli


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0"], "1 or more"),
        (["--token", "a b"], "letters"),
        (["--port", "99999"], "--port"),
        (["--memory", "much"], "2GB"),
        (["--weights", "nowhere"], "not a weights folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_options_are_said_before_anything_starts(capsys, words, says):
    assert cli.run(["serve", *words]) in (2, 3)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_serves_until_it_is_stopped_and_leaves_nothing(tmp_path, host):
    command = [sys.executable, "-c", "from efface.app.cli import main; main()", "serve", "--host", host, "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored
    ) as server:
        address = re.search(r"http://\S+", server.stdout.readline()).group()
        about = re.sub(r"/(\?token=.*)?$", "/api/about", address)
        if host == "0.0.0.0":
            assert re.search(r"\?token=\S{30,}", address)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(about)
        else:
            assert b'"version"' in urllib.request.urlopen(about).read()
        assert [path.name[:7] for path in tmp_path.iterdir()] == ["efface-"]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == cli.STOPPED
        assert "Traceback" not in server.stderr.read()
    assert [*tmp_path.iterdir()] == []
