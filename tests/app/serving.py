"""What the tests of the server share: tasks that worker processes import, pictures, and a tiny network."""

import contextlib
import io
import os
import signal
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

BOX = [8, 8, 24, 12]


@dataclass(frozen=True)
class Answer:
    """Return what it was given."""

    value: object

    def run(self, tell):
        tell(0.5, "thinking")
        return self.value


@dataclass(frozen=True)
class Hold:
    """Hold some memory for some time."""

    megabytes: int = 0
    seconds: float = 60

    def run(self, tell):
        held = np.ones(self.megabytes << 20, np.uint8)
        tell(0.5, "holding")
        time.sleep(self.seconds)
        return int(held.sum())


@dataclass(frozen=True)
class Die:
    """End as a process that the system kills."""

    def run(self, tell):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Raise:
    """Raise what it was given."""

    error: Exception

    def run(self, tell):
        raise self.error


@contextlib.contextmanager
def running(**settings):
    """Serve with these settings, to a client in this process."""
    from fastapi.testclient import TestClient

    from efface.app.server import create_app
    from efface.app.serving.settings import Settings

    with TestClient(create_app(Settings(**settings)), base_url="http://127.0.0.1") as client:
        yield client


def until(true, seconds=30):
    """Wait until something is so; fail where it does not come to be."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def flat(size=(60, 40), colour=(200, 190, 180)):
    """Return a picture of one colour with a dark bar in BOX, which no network is needed to take away."""
    image = Image.new("RGB", size, colour)
    image.paste((20, 30, 40), (10, 10, 30, 16))
    return image


def rough(seed=0, size=(96, 64)):
    """Return a picture that needs a network."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def encoded(image, form="PNG", **settings):
    """Return the bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def pixels(content):
    """Return the pixels of a picture file."""
    return np.asarray(Image.open(io.BytesIO(content)))
