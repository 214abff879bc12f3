"""`wsipipe mil`: the aggregators, and whether they respect the MIL assumption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsipipe.errors import ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _group() -> None:
    """Aggregators: the list, self-tests, splits for other tools."""


@app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Name the aggregators with their size for 1,024-dimensional features and two classes."""
    from wsipipe.cli._options import quiet_threads

    quiet_threads()
    import json

    from wsipipe.mil.registry import aggregator_class, create_aggregator, list_aggregators

    rows = []
    for name in list_aggregators():
        model = create_aggregator(name, in_dim=1024, n_classes=2)
        cls, _ = aggregator_class(name)
        rows.append(
            {
                "name": name,
                "params": sum(p.numel() for p in model.parameters()),
                "order_matters": cls.order_matters,
                "about": (cls.__doc__ or "").strip().splitlines()[0],
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['name']:16}{row['params']:>12,}  {row['about']}")


@app.command("splits")
def splits_command(
    run: Annotated[Path, typer.Argument(help="OUT of `wsipipe train`, or its splits.csv.")],
    to: Annotated[str, typer.Option(help="clam (a folder), patho-bench, stamp or wsipipe.")],
    out: Annotated[Path, typer.Option(help="File or folder to write.")],
) -> None:
    """Write the folds of a run for other tools, so that they are judged on the same patients.

    wsipipe mil splits wsipipe-mil --to clam --out splits/task
    """
    from collections import defaultdict

    from wsipipe.mil.cohort import read_table
    from wsipipe.mil.split_files import read_splits, write_splits

    path = run / "splits.csv" if run.is_dir() else run
    rows = read_table(path)
    if "slide_id" not in rows[0]:
        raise ConfigError(
            f"{path}: no column 'slide_id': which slides there are cannot be told.",
            "Name the --out folder of a run that was trained with these --splits.",
        )
    patient_of = {r["slide_id"]: r.get("patient_id") or r["slide_id"] for r in rows}
    slides_of: dict[str, list[str]] = defaultdict(list)
    for slide, patient in patient_of.items():
        slides_of[patient].append(slide)
    write_splits(out, read_splits(path, patient_of), slides_of, to)
    typer.echo(str(out))


@app.command("selftest")
def selftest_command(
    aggregator: Annotated[
        list[str] | None, typer.Option(help="Which; repeatable. Default: all.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes of training.")] = 20,
    bags: Annotated[int, typer.Option(help="Bags to train on, and as many to test.")] = 200,
    seed: Annotated[int, typer.Option(help="Of data and weights.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Does a model respect the MIL assumption? (Raff and Holt, NeurIPS 2023)

    Three synthetic tests, poisoned so that a model that learned "what negative bags look like"
    instead of "what makes a bag positive" fails: in training the poison stands in negative bags, in
    testing in positive ones. A test is passed with a test AUC above 0.5 where the training AUC is
    high; far below 0.5 means that the poison was learned.

      wsipipe mil selftest

      wsipipe mil selftest --aggregator abmil --aggregator max
    """
    from wsipipe.cli._options import quiet_threads

    quiet_threads()
    import json

    from wsipipe.mil.assumption import TESTS, selftest
    from wsipipe.mil.registry import list_aggregators

    results = selftest(aggregator or list_aggregators(), epochs=epochs, bags=bags, seed=seed)
    if as_json:
        typer.echo(json.dumps([r.as_json() for r in results]))
        return
    typer.echo(f"{'':18}" + "".join(f"{name:>28}" for name in TESTS))
    for name in dict.fromkeys(r.aggregator for r in results):
        cells = {r.test: r for r in results if r.aggregator == name}
        line = "".join(
            f"{cells[t].train_auc:>14.2f}{cells[t].test_auc:>7.2f} {cells[t].verdict:>6}"
            for t in TESTS
        )
        typer.echo(f"{name:18}{line}")
    typer.echo("\ntraining AUC, test AUC, verdict")
