"""Serve the page at a free port, which is printed, with a tiny untrained eraser: ``served.py FOLDER``.

For screenshots, what comes with the package erases instead, where it does.
"""

import os
import sys
from pathlib import Path

import torch

from efface.app.server import listen, serve
from efface.app.serving.settings import Settings
from efface.core.trained import shipped
from efface.io.weights import save_weights
from efface.pictures.deeperaser import DeepEraser


def tiny_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    method = DeepEraser(**DeepEraser.small)
    save_weights(folder, method.build().state_dict(), {"method": method.name, "params": method.params()})
    return folder


if __name__ == "__main__":
    real = "EFFACE_SCREENSHOTS" in os.environ and shipped("strokefill")
    settings = Settings(weights=None if real else tiny_weights(Path(sys.argv[1])), max_file_bytes=80_000_000)
    listening = listen(settings.host, 0)
    serve(settings, listening, started=lambda: print(listening.getsockname()[1], flush=True))
