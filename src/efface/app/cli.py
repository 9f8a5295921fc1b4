"""Run the command line: read the words, call the verb, turn errors into a line and an exit code.

Exit codes: 0 done, 1 something failed, 2 the command is wrong, 3 the input was refused, 130 stopped by the user.
Commands are named by import strings, so that ``efface --help`` imports none of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from efface.app.options import STOPPED
from efface.errors import EffaceError, UnknownNameError, UsageError

COMMANDS = {
    "clean": (
        "Take text out of pictures.\n\nText is found by itself unless --mask or --box says where it is. The inputs "
        "stay as they are: results are called NAME_clean, and every pixel outside the mask stays exactly as it was "
        "where the format stores pixels exactly.",
        "efface clean holiday/ -o cleaned/ --keep 0,0,200,80 --report",
    ),
    "shrink": (
        "Take weights out of a network.\n\nThe model comes back in the form it has, beside it the plan of what went, "
        "which can be undone. Files stay as they are.",
        "efface shrink model.safetensors --sparsity 0.8 --dry-run",
    ),
    "inspect": (
        "Say which channels of a network can go.\n\nGroups that go together, what is frozen and why, parameters and "
        "FLOPs of each group, and a picture of them. The model stays as it is.",
        "efface inspect nets.small:build --input 1x3x224x224 -o graph.svg",
    ),
    "bench": (
        "Measure what a plan gains.\n\nTime of each layer and of the whole beside the original, bytes, accuracy; how "
        "much of each layer is safe to take; and forms of sparse layers that are really quicker on this machine.",
        "efface bench nets.small:build net_shrunk --input 1x3x32x32 --export column-blocks -o quick/",
    ),
    "forget": (
        "Take concepts out of a generator.\n\nThe pipeline stays as it is: what comes out is an edit, small, that "
        "`efface sample` applies, scales and stacks, and that can be exported. Needs the extra `diffusion`.",
        'efface forget tiny --remove circle --instead square --keep "a star; a cross" -o no-circles',
    ),
    "sample": (
        "Draw pictures from a prompt.\n\nWith a text-to-image pipeline of diffusers, or with the tiny one that comes "
        "with the package. Needs the extra `diffusion`.",
        'efface sample tiny "a striped red circle on white" --grid 9 -o circles.png',
    ),
    "export": (
        "Write edits of a generator in a form that others read.\n\nThe whole edited pipeline for diffusers, a LoRA "
        "file that stock diffusers loads, or one map on the text embeddings, for every model with the same text "
        "encoder. Needs the extra `diffusion`.",
        "efface export tiny no-circles no-stars -o edited/",
    ),
    "serve": (
        "Erase in the browser.\n\nServes a page to this machine alone: drop pictures, choose what goes, compare, and "
        "download. Needs the extra `web`.",
        "efface serve --open",
    ),
    "list": ("List the methods.", 'efface list --task "text from pictures"'),
    "show": (
        "Show what a method does.\n\nIts card, hyper-parameters, weights, and the evidence stored for it.",
        "efface show deeperaser",
    ),
    "fit": (
        "Train a method by a recipe.\n\nWeights, log, samples and state go into one folder.",
        "efface fit recipes/strokefill.toml --data photos/ -o runs/strokefill",
    ),
    "check": (
        "Measure what a paper claims.\n\n"
        "Each effect is measured beside a baseline. The exit code is 1 if one did not show.",
        "efface check deeperaser --seeds 0,1,2",
    ),
    "score": (
        "Compare cleaned pictures with the truth, or edited pipelines with the original.\n\nPSNR, SSIM and the other "
        "figures of the field, for the whole picture and inside and outside the mask. With --erasure: what an edit "
        "erased, kept and gives away under attack.",
        "efface score cleaned/ --truth truth/ --mask masks/ -o scores.csv",
    ),
    "convert": (
        "Turn an official checkpoint into a weights folder.\n\nNo other command reads a stranger's .pth or .pt file, "
        "and whatever in it is not a plain tensor is refused.",
        "efface convert deeperaser.pth --method deeperaser -o weights/deeperaser",
    ),
}


def _version() -> str:
    from importlib.metadata import version

    return version("efface")


app = App(
    name="efface",
    help="Take out what should not be there: text out of pictures, weights out of networks, concepts out of "
    "generators.",
    help_format="plaintext",
    help_epilogue="Begin with: efface clean photo.jpg\nOptions and an example of each command: efface COMMAND --help",
    version=_version,
    default_parameter=Parameter(negative=(), show_default=lambda value: str(value) if value else None),
    suppress_keyboard_interrupt=False,
)
for _place, (_name, (_help, _example)) in enumerate(COMMANDS.items()):
    _home = f"efface.app.commands.{_name}:{_name}_"
    app.command(_home, name=_name, help=_help, help_epilogue=f"Example: {_example}", sort_key=_place)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``efface`` with ``argv`` (by default the process's own) and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are printed, as JSON on stdout where ``--json`` is given."""
    try:
        return app(list(argv), exit_on_error=False, print_error=False, result_action="return_value") or 0
    except UnknownCommandError as error:
        word = (error.unused_tokens or [""])[0]
        return _report(UnknownNameError("command", word, COMMANDS, few=len(COMMANDS)), argv)
    except CycloptsError as error:
        command = " ".join(["efface", *(error.command_chain or ())])
        return _report(UsageError(str(error).strip().rstrip("."), fix=f"See: {command} --help"), argv)
    except EffaceError as error:
        return _report(error, argv)
    except OSError as error:
        return _report(EffaceError(error.strerror or str(error), where=error.filename), argv)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _report(error: EffaceError, argv: Sequence[str]) -> int:
    if "--json" in argv:
        values = {"type": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        print(json.dumps({"error": values}))
    else:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code
