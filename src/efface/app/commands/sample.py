"""``efface sample``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Device, Json

GAP = 2  # pixels between the pictures of a sheet


def sample_(
    pipeline: Annotated[str, Parameter(name="PIPELINE", help="Folder of a diffusers pipeline, or tiny: our own.")],
    prompt: Annotated[str, Parameter(name="PROMPT", help="What to draw.")],
    /,
    *,
    steps: Annotated[int, Parameter(group=HOW, help="Steps from noise to picture.")] = 20,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of the first picture; the next ones count up.")] = 0,
    grid: Annotated[int, Parameter(group=HOW, help="Number of pictures, drawn side by side on one sheet.")] = 1,
    guidance: Annotated[float, Parameter(group=HOW, help="How hard the prompt pulls; 1 is the model alone.")] = 4.0,
    negative: Annotated[str, Parameter(group=HOW, help="What to steer away from.")] = "",
    sampler: Annotated[str, Parameter(group=HOW, help="ddim, euler, heun, dpmpp-2m or ancestral.")] = "ddim",
    device: Device = "auto",
    out: Annotated[Path, Parameter(name=["--out", "-o"], group=OUTPUT, help="Picture to write.")] = Path("sample.png"),
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an existing picture.")] = False,
    json: Json = False,
) -> int:
    """Draw, write the sheet, and say where it is."""
    from PIL import Image

    from efface.app.show import print_json
    from efface.io.atomic import atomic_write, check_target
    from efface.verbs.sample import sample

    check_target(out, overwrite=overwrite)
    drawn = sample(
        pipeline, prompt, seeds=range(seed, seed + grid), steps=steps, guidance=guidance, negative=negative,
        sampler=sampler, device=device,
    )  # fmt: skip
    pictures = (drawn.pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    height, width = pictures.shape[1:3]
    columns = max(1, round(grid**0.5))
    rows = -(-grid // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (i % columns * (width + GAP), i // columns * (height + GAP)))
    with atomic_write(out, overwrite=overwrite) as temporary:
        sheet.save(temporary, "PNG")
    if json:
        print_json({"path": str(out), "prompt": prompt, "seeds": list(drawn.seeds)})
    else:
        print(f"{out}: {grid} of {prompt!r}", file=sys.stdout)
    return 0
