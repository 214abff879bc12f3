"""`wsipipe predict`: a trained model on new features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[
        Path, typer.Option(help="OUT of `wsipipe train`, or one fold.", show_default=False)
    ],
    features: Annotated[Path, typer.Option(help="Folder of feature files.", show_default=False)],
    out: Annotated[Path, typer.Option(help=".csv to write.")] = Path("predictions.csv"),
    labels: Annotated[
        Path | None,
        typer.Option(help="Evaluate on this outside cohort, thresholds frozen."),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(help=".csv: slide_id, patient_id; for models trained with --slides-together."),
    ] = None,
    feature_key: Annotated[
        str | None, typer.Option(help="Dataset, where a file holds several encoders.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Predict slides with the mean of all trained folds.

    [bold]Examples[/bold]

      wsipipe predict --model wsipipe-mil --features new-out/features/phikon --out new.csv

      wsipipe predict --model wsipipe-mil --features other/features/phikon --labels other.csv
                                                   an outside cohort, at frozen thresholds

      wsipipe predict --model wsipipe-mil --features new-out/features/phikon --patients new.csv
                                                   a model of --slides-together: one bag a patient

    Features of another encoder, mpp or tile size are refused, and so is an outside cohort that
    shares patients or slides with the training cohort.
    """
    from wsipipe.cli._options import quiet_threads

    quiet_threads()
    import json

    from wsipipe.mil.prediction import predict

    result = predict(
        model,
        features,
        out,
        labels=labels,
        patients=patients,
        feature_key=feature_key,
        device=device,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        document = {
            "predictions": list(result.rows),
            "skipped": list(result.skipped),
            "seen_in_training": list(result.seen),
            "metrics": result.metrics,
        }
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{len(result.rows)} predictions: {out}")
    for name, figures in (result.metrics or {}).items():
        for metric, value in figures.items():
            typer.echo(
                f"{name} {metric}: {value['pooled']} ({value['ci_low']} to {value['ci_high']})"
            )
