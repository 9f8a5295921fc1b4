"""Settings of all tests: one thread per worker, nothing taken from the network, and slow machines are forgiven."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

settings.register_profile("efface", deadline=None, derandomize=True)
settings.load_profile("efface")
