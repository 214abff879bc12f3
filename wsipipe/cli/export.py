"""`wsipipe export`: a run's features as other tools lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    to: Annotated[
        str,
        typer.Option("--to", help="trident, clam, stamp, anndata, parquet or zarr."),
    ],
    dest: Annotated[
        Path | None,
        typer.Option("--dest", "--out", help="Where to write; default: OUT/export/<layout>."),
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Only this folder of features/; again for more.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="List what was written as JSON.")] = False,
) -> None:
    """Write the features of a run as another tool lays them out; the run itself stays as it is.

    [bold]Examples[/bold]

      wsipipe export wsipipe-out --to trident --dest job/

      wsipipe export wsipipe-out --to clam --dest CLAM_FEATURES --encoder phikon

      wsipipe export wsipipe-out --to stamp          # coordinates in µm

      wsipipe export wsipipe-out --to anndata        # one .h5ad a slide

    Parquet needs the extra "export", Zarr the extra "zarr".
    """
    from wsipipe.store.layouts import export_run

    dest = dest or out / "export" / to
    written = export_run(out, to, dest, encoders=encoder)
    if as_json:
        content = {"layout": to, "dest": str(dest), "files": [str(p) for p in written]}
        typer.echo(json.dumps(content))
    else:
        typer.echo(f"{len(written)} files in {dest}")
