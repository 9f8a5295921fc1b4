"""Measure how well the tiny language model tells the next character, and ship it with its figures.

Give the weights that efface fit recipes/tiny-llama.toml leaves, and the text that it learned from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from efface.core.run import versions
from efface.io.weights import load_card
from efface.parts.data.language import Corpus, characters
from efface.training.language import assemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()

    net = assemble(options.weights, options.out)
    corpus = Corpus.read(options.text, characters())
    score = corpus.score(net)
    figures = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "held_out_characters": len(corpus.val.ids),
        "cross_entropy": round(score.loss, 4),
        "next_character_right": round(score.accuracy, 4),
    }
    print(json.dumps(figures, indent=2))
    file = options.out / "model.safetensors"
    card = {
        "title": "A tiny language model of the Llama format that reads and writes characters",
        "licence": "Apache-2.0",
        "trained_on": "the first nine tenths of 1.1 MB of plays by William Shakespeare, in the public domain; "
        "figures are of the last tenth",
        "figures": figures,
        "recipe": load_card(options.weights)["recipe"],
        "versions": versions(),
        "files": {file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}},
    }
    (options.out / "card.json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
