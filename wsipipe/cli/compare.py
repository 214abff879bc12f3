"""`wsipipe compare`: several training runs in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    models: Annotated[
        list[Path], typer.Argument(help="--out folders of `wsipipe train`.", show_default=False)
    ],
    metric: Annotated[
        str | None, typer.Option(help="Sort and test by this.  [default: the first in common]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the whole table as .csv here, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare training runs: encoders, aggregators, settings; best first.

    Two-class runs on the same patients are tested against the best one (DeLong, paired; adjusted by
    Holm). A run that differs in patients is listed without a test.

      wsipipe compare train/phikon-abmil train/uni-abmil train/uni-transmil --out table.csv
    """
    import dataclasses
    import json

    from wsipipe.mil.compare import compare_runs, comparison_csv
    from wsipipe.store import publish_text

    rows = compare_runs(models, metric)
    if out is not None:
        publish_text(out, comparison_csv(rows))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    name = metric or next(iter(rows[0].figures))
    typer.echo(f"{'encoder':<22}{'aggregator':<14}{name:>10}{'95 % interval':>20}{'p to best':>12}")
    for row in rows:
        f = row.figures[name]
        value = "-" if f["pooled"] is None else f"{f['pooled']:.3f}"
        band = "-" if f["ci_low"] is None else f"{f['ci_low']:.3f} to {f['ci_high']:.3f}"
        p = "" if row.p_to_best is None else f"{row.p_to_best:.3g}"
        typer.echo(f"{row.encoder:<22}{row.aggregator:<14}{value:>10}{band:>20}{p:>12}")
