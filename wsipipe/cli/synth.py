"""`wsipipe synth`: synthetic slides with known tissue, tumour and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsipipe.errors import ConfigError


def command(
    out: Annotated[Path, typer.Argument(help="Folder to fill; finished slides in it are kept.")],
    n: Annotated[int, typer.Option("-n", "--number", help="Number of slides.")] = 3,
    size: Annotated[str, typer.Option(help="Level-0 pixels: 8192, or 12000x8000 (WxH).")] = "4096",
    mpp: Annotated[float, typer.Option(help="µm per level-0 pixel.")] = 0.5,
    seed: Annotated[int, typer.Option(help="The same seed gives the same slides.")] = 0,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels",
            help="Half of the patients have no tumour (for training a model); or all have one.",
        ),
    ] = True,
    tumour_fraction: Annotated[
        str, typer.Option(metavar="LOW:HIGH", help="Share of tumour in the tissue.")
    ] = "0.05:0.4",
    slides_per_patient: Annotated[int, typer.Option(help="Slides that share a patient.")] = 1,
    sites: Annotated[int, typer.Option(help="Sites; slides of one site share a stain.")] = 2,
    artefact: Annotated[
        list[str] | None, typer.Option(help="pen, fold or blur, with masks; repeatable.")
    ] = None,
    codec: Annotated[str, typer.Option(help="jpeg, jp2k, lzw or deflate.")] = "jpeg",
    no_mpp: Annotated[
        bool, typer.Option("--no-mpp", help="Leave the resolution out of the files.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Threads; 0 = all usable cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Make synthetic pyramidal H&E-like slides whose tissue, tumour and label are known.

    [bold]Examples[/bold]

      wsipipe synth slides                          three slides of 4,096 px

      wsipipe synth slides -n 40 --size 8192 --slides-per-patient 2
                                                    a cohort for `wsipipe train`

      wsipipe synth big -n 1 --size 60000 --mpp 0.25
                                                    one as large as slides get

      wsipipe synth odd --artefact pen --artefact blur --codec jp2k --no-mpp

    Slides lie in OUT, labels in OUT/labels.csv, masks (PNG, and GeoJSON in level-0 pixels) in
    OUT/truth/tissue, OUT/truth/tumour and so on; OUT/truth/<slide>.json holds their scale.
    """
    import csv
    import json

    from rich.console import Console

    from wsipipe.synth import make_cohort

    width, height = _size(size)
    console = Console(stderr=True)

    def report(slide_id: str, made: bool) -> None:
        console.print(f"{slide_id}  {'made' if made else 'kept'}", highlight=False)

    make_cohort(
        out, n=n, width=width, height=height, mpp=mpp, seed=seed, labels=labels,
        tumour_fraction=_range(tumour_fraction), slides_per_patient=slides_per_patient,
        sites=sites, artefacts=artefact or (), codec=codec, name_mpp=not no_mpp,
        workers=workers or None, progress=report,
    )  # fmt: skip
    table = out / "labels.csv"
    if as_json:
        with table.open(encoding="utf-8", newline="") as handle:
            slides = list(csv.DictReader(handle))
        typer.echo(json.dumps({"out": str(out), "labels": str(table), "slides": slides}))
    else:
        console.print(f"slides, labels.csv and truth/ lie in {out}", highlight=False)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().replace("×", "x").split("x")
    try:
        numbers = [int(side) for side in sides]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ConfigError(f"synth: --size {text!r} is no size.", "Write 8192, or 12000x8000 (WxH).")
    return numbers[0], numbers[-1]


def _range(text: str) -> tuple[float, float]:
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ConfigError(
            f"synth: --tumour-fraction {text!r} is no range.", "Write 0.05:0.4, or one number."
        )
    return numbers[0], numbers[-1]
