"""``efface sample``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from efface.app.options import HOW, OUTPUT, Device, Json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SHOWN = 128  # least height of a picture on a sheet
GAP = 2  # pixels between the pictures of a sheet
WHAT_TO_OPEN = "Folder of a diffusers pipeline, name of one in the hub's cache, or tiny: our own."


def sample_(
    pipeline: Annotated[str, Parameter(name="PIPELINE", help=WHAT_TO_OPEN)],
    prompt: Annotated[str, Parameter(name="PROMPT", help="What to draw.")],
    /,
    *,
    edit: Annotated[
        list[Path] | None,
        Parameter(group=HOW, metavar="EDIT", help="Folder of an edit to draw with; repeated, they act together."),
    ] = None,
    strength: Annotated[float, Parameter(group=HOW, help="How much the edits act; 1 is as they were made.")] = 1.0,
    sibling: Annotated[
        bool, Parameter(group=HOW, help="Take edits made for another pipeline of the same architecture.")
    ] = False,
    steps: Annotated[int, Parameter(group=HOW, help="Steps from noise to picture.")] = 20,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of the first picture; the next ones count up.")] = 0,
    grid: Annotated[
        int, Parameter(group=HOW, help="Number of pictures on the sheet; with edits a row before and a row after.")
    ] = 1,
    guidance: Annotated[
        float | None,
        Parameter(group=HOW, help="How hard the prompt pulls; 1 is none. Default: 7.5; tiny 2."),
    ] = None,
    negative: Annotated[str, Parameter(group=HOW, help="What to steer away from.")] = "",
    sampler: Annotated[str, Parameter(group=HOW, help="ddim, euler, heun, dpmpp-2m or ancestral.")] = "ddim",
    device: Device = "auto",
    out: Annotated[Path, Parameter(name=["--out", "-o"], group=OUTPUT, help="Picture to write.")] = Path("sample.png"),
    overwrite: Annotated[bool, Parameter(group=OUTPUT, help="Replace an existing picture.")] = False,
    json: Json = False,
) -> int:
    """Draw, write the sheet, and say where it is."""
    from efface.app.show import print_json
    from efface.io.atomic import atomic_write, check_target
    from efface.verbs.sample import sample

    check_target(out, overwrite=overwrite)
    edits = edit or []
    drawn = sample(
        pipeline, prompt, edits=edits, strength=strength, sibling=sibling, compare=bool(edits),
        seeds=range(seed, seed + grid), steps=steps, guidance=guidance, negative=negative, sampler=sampler,
        device=device,
    )  # fmt: skip
    if drawn.before is None:
        image = sheet(drawn.pictures, max(1, round(grid**0.5)))
    else:
        image = sheet([*drawn.before, *drawn.pictures], grid)
    with atomic_write(out, overwrite=overwrite) as temporary:
        image.save(temporary, "PNG")
    if json:
        told = {"path": str(out), "prompt": prompt, "seeds": list(drawn.seeds)}
        print_json({**told, "edits": [str(path) for path in edits], "strength": strength} if edits else told)
    else:
        print(f"{out}: {grid} of {prompt!r}" + (", before above after" if edits else ""))
    return 0


def sheet(pictures: Tensor | list[Tensor], columns: int) -> Image:
    """Return ``pictures`` (3, h, w) in [0, 1] side by side, ``columns`` in a row; tiny ones are enlarged."""
    from PIL import Image

    height, width = pictures[0].shape[1:]
    scale = max(1, SHOWN // height)
    height, width = height * scale, width * scale
    rows = -(-len(pictures) // columns)
    image = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        pixels = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
        large = pixels.resize((width, height), Image.Resampling.NEAREST)
        image.paste(large, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return image
