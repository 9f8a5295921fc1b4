"""`efface serve` from the outside."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import psutil
import pytest
from serving import encoded, flat

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


@pytest.fixture
def serving(tmp_path):
    """Start servers that put their files into ``tmp_path``; give each with its host and port."""
    with contextlib.ExitStack() as stack:

        def start(host="127.0.0.1"):
            command = [sys.executable, "-c", "from efface.app.cli import main; main()", "serve"]
            server = subprocess.Popen(
                [*command, "--host", host, "--port", "0"],
                env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by tests in the background
            )
            stack.enter_context(server)
            stack.callback(server.kill)
            server.address = re.search(r"http://\S+", server.stdout.readline()).group()
            return server, urlsplit(server.address).netloc

        yield start


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_serves_until_it_is_stopped_and_leaves_nothing(serving, tmp_path, host):
    server, place = serving(host)
    about = f"http://{place}/api/about"
    if host == "0.0.0.0":
        assert re.search(r"\?token=\S{30,}", server.address)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(about)
    else:
        assert b'"version"' in urllib.request.urlopen(about).read()
    assert [path.name[:7] for path in tmp_path.iterdir()] == ["efface-"]
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == cli.STOPPED
    assert "Traceback" not in server.stderr.read()
    assert [*tmp_path.iterdir()] == []


def test_who_waits_is_answered_when_the_server_stops(serving):
    server, place = serving()

    def ask(method, path, body=None):
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.request(method, path, body, {"Connection": "close"})
        return connection.getresponse

    with ask("POST", "/api/pictures?name=a.png", encoded(flat()))() as answer:
        picture = json.load(answer)["id"]
    for child in psutil.Process(server.pid).children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.suspend()  # a worker, so that the answer has to be waited for
    texts = ask("GET", f"/api/pictures/{picture}/texts")
    with ask("GET", "/api/about")() as answer:
        assert answer.status == 200  # so what was asked before was heard
    server.send_signal(signal.SIGINT)
    with texts() as answer:
        assert answer.status == 409
    assert server.wait(30) == cli.STOPPED
    assert "Traceback" not in server.stderr.read()
