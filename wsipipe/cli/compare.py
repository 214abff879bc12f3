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

    Runs on the same patients and folds are tested in pairs (DeLong for the AUROC of two classes,
    else bootstrap of balanced accuracy, R2 or C-index), p values adjusted by Holm over all pairs.
    Runs of other folds are listed untested: a difference of folds is no difference of models.

      wsipipe compare train/phikon-abmil train/uni-abmil train/uni-transmil --out table.csv
    """
    import dataclasses
    import json

    from wsipipe.mil.run_table import run_table, run_table_csv
    from wsipipe.store import publish_text

    table = run_table(models, metric)
    rows, name = table.rows, table.metric
    if out is not None:
        publish_text(out, run_table_csv(rows))
    if table.untested:
        typer.echo(f"Not tested against each other: {table.untested}", err=True)
    if as_json:
        runs = [dataclasses.asdict(row) for row in rows]
        typer.echo(json.dumps({"metric": name, "runs": runs, "pairs": list(table.pairs)}))
        return
    typer.echo(f"{'encoder':<30}{'aggregator':<14}{name:>18}{'95 % interval':>20}{'p to best':>12}")
    for row in rows:
        f = row.figures[name]
        value = "-" if f["pooled"] is None else f"{f['pooled']:.3f}"
        band = "-" if f["ci_low"] is None else f"{f['ci_low']:.3f} to {f['ci_high']:.3f}"
        p = "" if row.p_to_best is None else f"{row.p_to_best:.3g}"
        typer.echo(f"{row.encoder:<30}{row.aggregator:<14}{value:>18}{band:>20}{p:>12}")
    for pair in table.pairs:
        typer.echo(
            f"{pair['first']} - {pair['second']}: {pair['metric']} {pair['difference']:+.4f} "
            f"({pair['ci_low']:+.4f} to {pair['ci_high']:+.4f}), p {pair['p']:.4g}, "
            f"Holm {pair['p_holm']:.4g} ({pair['test']})"
        )
