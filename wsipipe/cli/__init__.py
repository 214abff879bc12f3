"""The command line: `wsipipe COMMAND`. One file a command; a command is imported when it is used.

Each module `wsipipe.cli.<name>` has a function `command` (typer reads its signature and docstring)
or, for a group of commands, a `typer.Typer` named `app`.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from wsipipe import __version__
from wsipipe.errors import WsipipeError

# command -> (module, what it does). In the order in which a newcomer meets them.
COMMANDS: dict[str, tuple[str, str]] = {
    "extract": ("extract", "The main job: tissue, tiles, features, for all slides; resumable."),
    "inspect": ("inspect", "Open, measure, plan; write nothing."),
    "tissue": ("tissue", "Only find the tissue."),
    "tile": ("tile", "Only find the tissue and lay the grid."),
    "encoders": ("encoders", "The catalogue of encoders; one card."),
    "pull": ("pull", "Weights ahead of time, also for machines without network."),
    "pretrain": ("pretrain", "Train an encoder on the slides themselves, without labels."),
    "train": ("train", "MIL models on features: audited cross-validation."),
    "predict": ("predict", "A trained model on new features."),
    "heatmap": ("heatmap", "Attention over the slide: PNG, and GeoJSON for QuPath."),
    "mil": ("mil", "Aggregators: the list, and `mil selftest`."),
    "compare": ("compare", "Several training runs in one table, with paired tests."),
    "run": ("run", "A recipe of stages; only what is missing or changed runs."),
    "status": ("status", "What is done and what is not."),
    "verify": ("verify", "What is broken; damage found: exit 1."),
    "export": ("export", "Features as TRIDENT, CLAM, STAMP, AnnData, Parquet or Zarr."),
    "import": ("import_", "Features of TRIDENT, CLAM or STAMP into a run's folder."),
    "submit": ("submit", "Hand a run to a batch scheduler (slurm)."),
    "report": ("report", "One HTML page about a run."),
    "synth": ("synth", "Make synthetic H&E-like slides with known tissue, tumour and labels."),
    "doctor": ("doctor", "Is this machine fit?"),
}


class _LazyGroup(TyperGroup):
    """Shows all commands without importing any; imports the one that is called."""

    _listing = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module_name, short_help = COMMANDS[cmd_name]
        if self._listing:
            return TyperCommand(cmd_name, help=short_help, short_help=short_help)
        module = importlib.import_module(f"wsipipe.cli.{module_name}")
        if hasattr(module, "app"):
            command = typer.main.get_command(module.app)
        else:
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(cmd_name)(module.command)
            command = typer.main.get_command(single)
        command.name = cmd_name
        command.short_help = short_help
        return command


app = typer.Typer(
    cls=_LazyGroup,
    name="wsipipe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Whole-slide images in; features, MIL models and heatmaps out.",
    epilog="Start: wsipipe synth slides && wsipipe extract slides --encoder texture",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"wsipipe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the codes of the contract.

    What nobody foresaw ends with 70 (BSD's EX_SOFTWARE), never with 1: that means that all slides
    but the failed ones are complete.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that is no UTF-8 is shown (and is valid JSON), not a crash of the print.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=args, standalone_mode=True)
    except WsipipeError as error:
        typer.echo(f"wsipipe: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if os.environ.get("WSIPIPE_DEBUG"):
            raise
        typer.echo(f"wsipipe: {error}.", err=True)
        sys.exit(4)
    except Exception as error:
        if os.environ.get("WSIPIPE_DEBUG"):
            raise
        typer.echo(
            f"wsipipe: unexpected {type(error).__name__}: {error}. This is a bug, or input that "
            "wsipipe should have refused; WSIPIPE_DEBUG=1 shows where. What is finished is whole.",
            err=True,
        )
        sys.exit(70)
