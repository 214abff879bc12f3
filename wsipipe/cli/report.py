"""`wsipipe report`: one HTML page about a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wsipipe.errors import ConfigError


def command(
    out: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    page: Annotated[
        Path | None, typer.Option("--page", help="Where to write it.  [default: OUT/report.html]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it lies as JSON.")] = False,
) -> None:
    """Write one self-contained HTML page about a run.

    It shows what is done, what failed and what to do about it, every slide with its resolution,
    tissue and tiles, the thumbnails with outline and grid, and the settings. It needs no network
    and can be sent as one file; it names slide ids and, in the settings, the paths of the run.

        wsipipe report wsipipe-out
        wsipipe report wsipipe-out --page monday.html
    """
    from wsipipe.report.run_page import read_run, render_run_page
    from wsipipe.store import publish_text

    if not out.is_dir():
        raise ConfigError(f"{out} is not a folder.", "Name the --out folder of an extract run.")
    facts = read_run(out)
    if not facts.rows:
        raise ConfigError(f"{out} holds no run.", "Name the --out folder of an extract run.")
    written = publish_text(page or out / "report.html", render_run_page(facts))
    if as_json:
        typer.echo(json.dumps({"page": str(written), "slides": len(facts.rows)}))
    else:
        typer.echo(f"{written}")
