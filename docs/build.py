"""Write the pages of docs/ that come from docstrings, cards, help texts and results, and the table of the README.

Run it with `make docs`. A test asserts that what is committed is what this writes.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

import efface
from efface.app.cli import COMMANDS, app
from efface.app.show import bounds, measured
from efface.core.catalogue import entries
from efface.verbs.find import Description, describe

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/build.py from the source. Do not edit: run `make docs`. -->\n\n"
BEGIN, END = "<!-- methods: begin -->\n", "<!-- methods: end -->"


def pages() -> dict[Path, str]:
    """Return every page that is generated, with its text, the README included."""
    found = [describe(name, results=ROOT / "results") for name in entries()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return {
        ROOT / "README.md": head + BEGIN + methods_table(found, "docs/") + END + tail,
        ROOT / "docs/methods.md": f"{NOTE}# Methods\n\n" + methods_table(found, ""),
        ROOT / "docs/commands.md": commands_page(),
        ROOT / "docs/api.md": api_page(),
        **{ROOT / f"docs/methods/{d.entry.name}.md": method_page(d) for d in found},
    }


def methods_table(found: Sequence[Description], folder: str) -> str:
    """Return one row for each method, its name linked to its page below ``folder``."""
    rows = []
    for description in found:
        entry, result = description.entry, description.result
        card = entry.card
        shown = (
            "" if result is None else f"{sum(e.shown for e in result.effects)} of {len(result.effects)} effects shown"
        )
        rows.append((f"[{entry.name}]({folder}methods/{entry.name}.md)", card.task, card.paper, card.good_at, shown))
    return _table(("method", "takes away", "source", "good at", "evidence"), rows)


def method_page(description: Description) -> str:
    """Return the page of one method: docstring, card, hyper-parameters, weights and the claim as measured."""
    entry, result = description.entry, description.result
    card = [
        (k, ", ".join(v) if isinstance(v, list) else v) for k, v in entry.card.as_dict().items() if v not in ("", [])
    ]
    parts = [f"{NOTE}# {entry.name}\n\n{_markdown(entry.doc)}\n", "## Card\n", _table(("", ""), card)]
    if entry.params:
        rows = [(f"`{p.name}`", f"`{p.default!r}`", bounds(p), p.help) for p in entry.params]
        parts += ["## Hyper-parameters\n", _table(("name", "default", "range", "is"), rows)]
    if description.weights:
        parts += ["## Weights that come with the package\n"]
        rows = [
            (name, _megabytes(card), card.get("licence", entry.card.licence))
            for name, card in description.weights.items()
        ]
        parts += [_table(("folder", "size", "licence"), rows)]
    if result is not None:
        parts += [
            f"## Evidence\n\n{result.claim.statement}\n\nBaseline: {result.claim.baseline}. Data: {result.data}.\n"
        ]
        rows = [(e.name, measured(e), e.rule, "yes" if e.shown else "no") for e in result.effects]
        parts += [_table(("effect", "measured", "counts as shown when", "shown"), rows)]
        seeds = ", ".join(map(str, result.seeds))
        parts += [f"Measured in {result.seconds:.0f} s with seeds {seeds}: `efface check {entry.name}`.\n"]
    return "\n".join(parts)


def commands_page() -> str:
    """Return the help of every command, as a terminal shows it."""
    parts = [f"{NOTE}# Commands\n"]
    for words in ([], *([name] for name in COMMANDS)):
        text = io.StringIO()
        app.help_print(words, console=Console(file=text, width=96, color_system=None))
        lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
        parts.append(f"## {' '.join(['efface', *words])}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def api_page() -> str:
    """Return every public name with its signature and docstring, read from the source."""
    parts = [f"{NOTE}# Python API\n\n```python\nimport efface\n```\n"]
    for name in sorted(efface.HOMES, key=str.casefold):
        spec = importlib.util.find_spec(efface.HOMES[name])
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        node = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
        parts.append(
            f"## efface.{name}\n\n```python\n{_signature(node)}\n```\n\n{_markdown(ast.get_docstring(node))}\n"
        )
    return "\n".join(parts)


def _signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(s) for s in node.body if isinstance(s, ast.AnnAssign)]
        return "\n    ".join([f"class {node.name}:", *fields]) if fields else f"class {node.name}"
    whole = f"{node.name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return textwrap.fill(whole, 88, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _markdown(doc: str | None) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"``\1``", doc or "")


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def _megabytes(card: dict) -> str:
    return f"{sum(file['bytes'] for file in card['files'].values()) / 1e6:.1f} MB"


def main() -> int:
    """Write the pages; remove those of methods that are gone."""
    written = pages()
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in set((ROOT / "docs/methods").glob("*.md")) - written.keys():
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
