"""Measure how well the judge knows the world and the tiny pipeline follows prompts, and ship both with their figures.

Give the weights of the autoencoder, the judge, the text encoder and the denoiser, as efface fit leaves them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch

from efface.core.run import versions
from efface.io.weights import load_card
from efface.parts.diffusion.latents import decode, encode
from efface.parts.diffusion.pipelines import sample
from efface.parts.worlds.captions import caption
from efface.parts.worlds.judge import agreement, load_judge
from efface.parts.worlds.pipeline import assemble
from efface.parts.worlds.world import render, scenes
from efface.seeds import numpy_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("denoiser", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()

    judge, pipe = load_judge(options.judge), assemble(options.autoencoder, options.text, options.denoiser)
    drawn = scenes(options.count, numpy_generator(0, "held out"))
    rendered = torch.from_numpy(render(drawn).picture)
    prompts = [caption(scene) for scene in drawn]
    made = sample(pipe, prompts, range(len(drawn)), steps=options.steps, guidance=options.guidance)
    figures = {
        "pictures": options.count,
        "judge_on_renders": rounded(agreement(judge, rendered, drawn)),
        "judge_on_reconstructions": rounded(agreement(judge, decode(pipe.vae, encode(pipe.vae, rendered)), drawn)),
        "prompts_followed": rounded(agreement(judge, made, drawn)),
        "steps": options.steps,
        "guidance": options.guidance,
    }
    print(json.dumps(figures, indent=2))

    pipeline, judge_out = options.out / "tiny-text-to-image", options.out / "world-judge"
    pipe.to(torch.float16).save_pretrained(pipeline)
    recipes = {name: load_card(getattr(options, name))["recipe"] for name in ("autoencoder", "text", "denoiser")}
    card = {
        "title": "A tiny text-to-image pipeline that draws the procedural world",
        "licence": "Apache-2.0",
        "trained_on": "pictures that efface draws itself: efface.parts.worlds",
        "figures": figures,
        "recipes": recipes,
        "versions": versions(),
        "files": {str(path.relative_to(pipeline)): entry(path) for path in sorted(pipeline.rglob("*.safetensors"))},
    }
    (pipeline / "card.json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    shutil.copytree(options.judge, judge_out, dirs_exist_ok=True)
    card = load_card(judge_out)
    extra = {"licence": "Apache-2.0", "trained_on": "pictures that efface draws itself", "figures": figures}
    (judge_out / "card.json").write_text(json.dumps(card | extra, indent=2) + "\n", "utf-8")


def rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 3) for name, share in shares.items()}


def entry(path: Path) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


if __name__ == "__main__":
    main()
