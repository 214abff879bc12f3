"""`wsipipe train`: MIL models on features, by audited cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsipipe.errors import ConfigError
from wsipipe.words import read_setting, read_word


def command(
    features: Annotated[Path, typer.Option(help="Folder of feature files.", show_default=False)],
    labels: Annotated[
        Path,
        typer.Option(help=".csv: slide_id; optional patient_id, site.", show_default=False),
    ],
    target: Annotated[
        list[str] | None, typer.Option(help="Column to predict; repeat for several at once.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of follow-up times.")] = None,
    event: Annotated[
        str | None, typer.Option(help="Column: 1 = the event was seen, 0 = censored.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="auto, classification, regression or survival.")
    ] = "auto",
    aggregator: Annotated[
        str, typer.Option(help="abmil, clam-sb, transmil, ...; `wsipipe mil list`.")
    ] = "abmil",
    folds: Annotated[int, typer.Option(help="Folds over patients.")] = 5,
    repeats: Annotated[int, typer.Option(help="Repeats with other folds.")] = 1,
    splits: Annotated[
        Path | None,
        typer.Option(help="Given folds: ours, CLAM's (file or folder), Patho-Bench's, STAMP's."),
    ] = None,
    monte_carlo: Annotated[
        float, typer.Option(metavar="F", help="Test this share in each of --folds draws instead.")
    ] = 0.0,
    site_preserved: Annotated[
        bool, typer.Option("--site-preserved", help="No site on both sides of a fold.")
    ] = False,
    slides_together: Annotated[
        bool, typer.Option("--slides-together", help="One bag a patient instead of one a slide.")
    ] = False,
    standardize: Annotated[
        bool, typer.Option("--standardize", help="Features by mean and spread of training parts.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of folds, weights and order.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of this run.")] = Path("wsipipe-mil"),
    epochs: Annotated[int, typer.Option(help="At most.")] = 40,
    lr: Annotated[float, typer.Option(help="Of AdamW, after warm-up, before cosine.")] = 3e-4,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    batch_bags: Annotated[int, typer.Option(help="Bags a step; 0 = by cohort size.")] = 0,
    bag_tiles: Annotated[int, typer.Option(help="Tiles drawn from a bag a step; 0 = all.")] = 0,
    instance_dropout: Annotated[
        float, typer.Option(metavar="F", help="Share of tiles left out a step.")
    ] = 0.0,
    class_weights: Annotated[str, typer.Option(help="balanced, none, or sampler.")] = "balanced",
    inner: Annotated[
        int, typer.Option(help="Inner validation folds; 0 = 5 for small cohorts, else one 80/20.")
    ] = 0,
    patience: Annotated[int, typer.Option(help="Epochs without gain until a model stops.")] = 10,
    survival_loss: Annotated[str, typer.Option(help="cox, or nll (discrete time).")] = "cox",
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Choose inside training parts; repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the aggregator; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    executor: Annotated[
        str, typer.Option(help="local, ray, or ray://HOST: folds on all nodes of a cluster.")
    ] = "local",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    feature_key: Annotated[
        str | None, typer.Option(help="Dataset, where a file holds several encoders.")
    ] = None,
    permutation_run: Annotated[
        bool, typer.Option("--permutation-run", help="Once more with shuffled labels: chance?")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at labels without features and the reverse.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Replace a run of other settings in OUT.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after a kill (which is also the default).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="metrics.json on stdout.")] = False,
) -> None:
    """Train attention-MIL models on cached features, and say honestly how good they are.

    [bold]Examples[/bold]

      wsipipe train --features wsipipe-out/features/phikon --labels labels.csv --target label

      wsipipe train --features ... --labels ... --target msi --site-preserved --repeats 3

      wsipipe train --features ... --labels ... --time months --event died

      wsipipe train --features ... --labels ... --target label --grid lr=1e-4,3e-4,1e-3

      wsipipe train --features ... --labels ... --target label --repeats 5 --executor ray

    The unit is the patient (column patient_id). When to stop, which settings, thresholds and
    calibration are chosen on inner splits of each training part; the test folds are read once,
    after that. OUT holds metrics.json, predictions.csv, splits.csv, models/fold-K, report.html.
    The same command again goes on where it was killed.
    """
    from wsipipe.cli._options import quiet_threads

    if resume and recompute:
        raise ConfigError("--resume and --recompute contradict each other.")
    quiet_threads()
    elsewhere = None
    if executor != "local":
        if executor != "ray" and not executor.startswith("ray://"):
            raise ConfigError(f"--executor {executor!r}: local, ray or ray://HOST.")
        from wsipipe.pipeline.ray_training import RayFolds

        elsewhere = RayFolds(executor)
    import json

    from wsipipe.mil.crossval import train
    from wsipipe.mil.settings import TrainSettings

    settings = TrainSettings(
        aggregator=aggregator,
        aggregator_settings=dict(read_setting(text) for text in set_ or []),
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        batch_bags=batch_bags,
        bag_tiles=bag_tiles,
        instance_dropout=instance_dropout,
        class_weights=class_weights,
        inner=inner,
        patience=patience,
        precision=precision,
        survival_loss=survival_loss,
        standardize=standardize,
        seed=seed,
        grid=dict(_grid(text) for text in grid or []),
    )
    result = train(
        features,
        labels,
        target=target or [],
        time=time,
        event=event,
        task=task,
        aggregator=aggregator,
        folds=folds,
        repeats=repeats,
        splits=splits,
        monte_carlo=monte_carlo,
        site_preserved=site_preserved,
        slides_together=slides_together,
        standardize=standardize,
        seed=seed,
        out=out,
        device=device,
        feature_key=feature_key,
        strict=strict,
        recompute=recompute,
        permutation_run=permutation_run,
        settings=settings,
        say=lambda text: typer.echo(text, err=True),
        elsewhere=elsewhere,
    )
    if as_json:
        typer.echo(json.dumps(result.metrics))
    else:
        typer.echo(_table(result.metrics))
        typer.echo(f"\nReport: {result.out / 'report.html'}")
    for fold, reason in result.failed:
        typer.echo(f"{fold} failed: {reason}", err=True)
    if result.failed:
        raise typer.Exit(1)


def _grid(text: str) -> tuple[str, list[Any]]:
    key, sign, values = text.partition("=")
    if not sign or not values:
        raise ConfigError(f"--grid {text!r} is not KEY=A,B,C.")
    return key, [read_word(v.strip()) for v in values.split(",")]


def _table(metrics: dict[str, Any]) -> str:
    lines = [f"{'':28}{'pooled':>9}{'95 % interval':>22}{'mean of folds':>16}"]
    for name, figure in metrics["metrics"].items():
        low, high = figure["ci_low"], figure["ci_high"]
        band = "-" if low is None else f"{low:.3f} to {high:.3f}"
        pooled, mean = (
            "-" if v is None else f"{v:.3f}" for v in (figure["pooled"], figure["mean"])
        )
        lines.append(f"{name:28}{pooled:>9}{band:>22}{mean:>16}")
    return "\n".join(lines)
