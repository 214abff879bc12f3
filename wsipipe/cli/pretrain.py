"""`wsipipe pretrain`: train an encoder on the slides themselves."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wsipipe.errors import ConfigError

__all__ = ["command"]


def command(
    more_slides: Annotated[
        list[Path] | None, typer.Argument(metavar="SLIDES", show_default=False)
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to train; --list names them.")] = None,
    scale: Annotated[
        str, typer.Option(help="smoke (CPU, minutes), small (one GPU, a day) or paper.")
    ] = "smoke",
    slides: Annotated[
        list[Path] | None, typer.Option(help="Slides, folders or manifests to stream from.")
    ] = None,
    tiles: Annotated[
        Path | None, typer.Option(help="Tiles instead: a folder, .csv or .h5.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("wsipipe-pretrain"),
    init: Annotated[
        str | None, typer.Option(help="Encoder to start from (any catalogue name).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="A run is expected in --out: warn if there is none.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read; default: all cores.")
    ] = None,
    tissue: Annotated[
        str, typer.Option(help="Tissue detector, none, or a folder of masks.")
    ] = "auto",
    monitor_tiles: Annotated[
        Path | None, typer.Option(help="Labelled tiles (a subfolder a class) for an online k-NN.")
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option(help="Clusters of tiles (.csv) or features of them, for balanced sampling."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name all recipes.")] = False,
    describe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Tell what a recipe is, what is exact, what deviates."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Train an encoder on slides (or tiles) without labels.

    Examples:
        wsipipe pretrain --list
        wsipipe pretrain --describe virchow2
        wsipipe pretrain --recipe dinov2 --scale smoke --slides slides/ --out run1
        wsipipe pretrain --recipe dinov2 --scale small --slides slides/ --out run2 --init phikon
        wsipipe pretrain --recipe simclr --tiles tiles/ --out run3 --set optim.steps=500
        torchrun --nproc-per-node 8 -m wsipipe pretrain --recipe uni --scale paper --slides s/
        wsipipe extract slides/ --encoder run1/encoder --out features

    A run that was stopped goes on when the same command is given again, and shows the same losses
    as one that was not.
    """
    if list_:
        _list(as_json)
        return
    if describe is not None:
        _describe(describe, as_json)
        return
    if recipe is None:
        raise ConfigError("no recipe was named.", "Use --recipe NAME; --list names them all.")
    from wsipipe.embed.drain import Drain

    drain = Drain().install()
    try:
        from wsipipe.pretrain.run import pretrain
        from wsipipe.words import read_setting

        logging.basicConfig(level=logging.WARNING, format="wsipipe: %(message)s")
        logging.getLogger("wsipipe.pretrain").setLevel(logging.INFO)
        result = pretrain(
            recipe,
            out=out,
            scale=scale,
            slides=[*(slides or []), *(more_slides or [])],
            tiles=tiles,
            init=init,
            changes=dict(read_setting(item) for item in set_ or []),
            resume=resume,
            device=device,
            workers=workers,
            tissue=tissue,
            labelled=monitor_tiles,
            clusters=clusters,
            stop_signal=lambda: drain.signal_name,
        )
    finally:
        drain.restore()
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun the first process speaks
    if as_json:
        typer.echo(json.dumps({**asdict(result), "encoder": str(result.encoder)}))
        return
    typer.echo(
        f"{result.steps} steps, {result.tiles} tiles of {result.slides} slides, "
        f"{result.data_wait:.0%} of the time waiting for data.\n"
        f"Use it: wsipipe extract SLIDES --encoder {result.encoder}"
    )


def _list(as_json: bool) -> None:
    from wsipipe.pretrain.recipe import list_recipes, recipe_source

    rows = [(name, recipe_source(name)) for name in list_recipes()]
    if as_json:
        keys = ("title", "paper", "method")
        typer.echo(json.dumps([{"name": n, **{k: d[k] for k in keys}} for n, d in rows]))
        return
    for name, document in rows:
        typer.echo(f"{name:15} {document['paper']:28} {document['title']}")


def _describe(name: str, as_json: bool) -> None:
    from wsipipe.pretrain.recipe import SCALES, load_recipe

    recipes = {scale: load_recipe(name, scale) for scale in SCALES}
    if as_json:
        typer.echo(json.dumps({scale: r.to_dict() for scale, r in recipes.items()}))
        return
    paper = recipes["paper"]
    typer.echo(f"{paper.name}: {paper.title}\n{paper.paper}\n\nAs published:")
    typer.echo("".join(f"  - {line}\n" for line in paper.exact))
    typer.echo("Deviations (a '-style' recipe, not a replication):")
    typer.echo("".join(f"  - {line}\n" for line in paper.deviations))
    typer.echo(f"{'':8}{'network':42}{'batch':>7}{'steps':>9}{'tiles':>13}  crops")
    for scale, r in recipes.items():
        o, v = r.optim, r.views
        crops = f"{v.global_.n}x{v.global_.px}" + (
            f" + {v.local.n}x{v.local.px}" if v.local.n else ""
        )
        tiles = o.batch * o.steps
        typer.echo(f"{scale:8}{r.arch.timm:42}{o.batch:7}{o.steps:9}{tiles:13}  {crops}")
    typer.echo("\nAll keys at scale paper (change with --set):")
    for key, value in _flat(paper.to_dict()):
        typer.echo(f"  {key} = {json.dumps(value)}")


def _flat(document: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    skipped = {"exact", "deviations", "title", "paper", "name", "scale", "licence"}
    out: list[tuple[str, Any]] = []
    for key, value in document.items():
        if not prefix and key in skipped:
            continue
        if isinstance(value, dict) and key not in ("args", "mpp"):
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out
