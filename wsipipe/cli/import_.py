"""`wsipipe import`: other tools' features into a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsipipe.store.layouts import SlideFacts


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What the other tool wrote.", show_default=False)
    ],
    source: Annotated[str, typer.Option("--from", help="trident, clam or stamp.")],
    out: Annotated[Path, typer.Option("--out", "--dest", help="Folder of the run.")] = Path(
        "wsipipe-out"
    ),
    slides: Annotated[
        list[str] | None,
        typer.Option(help="The slides (files, folders, manifest): mpp, size, fingerprint."),
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(help="µm per level-0 pixel, for all slides.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Its name, where the files do not record it (CLAM).")
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Tile edge as the encoder saw it (CLAM).", min=1)
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Replace files of another identity in OUT.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="List what was written as JSON.")] = False,
) -> None:
    """Bring another tool's features into OUT/features/, for train, predict and heatmap.

    Units are read, never guessed: TRIDENT and CLAM keep level-0 pixels, STAMP keeps µm. What the
    files do not say (a pixel's size, CLAM's encoder) has to be given.

    [bold]Examples[/bold]

      wsipipe import job/ --from trident --out run1

      wsipipe import FEATURES --from clam --encoder uni_v1 --slides /data/slides

      wsipipe import stamp-out --from stamp --slide-mpp 0.2528
    """
    from wsipipe.errors import ConfigError
    from wsipipe.store.layouts import Wanted, import_run

    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder.", "Name what the other tool wrote.")
    wanted = Wanted(_facts(slides or []), slide_mpp, encoder, tile_px)
    written = import_run(folder, source, out, wanted, replace=recompute)
    if as_json:
        content = {"layout": source, "out": str(out), "files": [str(p) for p in written]}
        typer.echo(json.dumps(content))
    else:
        typer.echo(f"{len(written)} feature files in {out / 'features'}")


def _facts(slides: list[str]) -> dict[str, SlideFacts]:
    """Slide id (and base name, where it is unique) -> what the slide says."""
    if not slides:
        return {}
    from wsipipe.slide import open_slide
    from wsipipe.slide.discover import find_slides
    from wsipipe.store.layouts import SlideFacts

    found: dict[str, SlideFacts] = {}
    for entry in find_slides(slides):
        with open_slide(entry.path, mpp=entry.mpp) as slide:
            width, height = slide.dimensions
            found[entry.slide_id] = SlideFacts(
                slide.mpp, slide.mpp_source, width, height, slide.fingerprint()
            )
    bases = [Path(slide_id).name for slide_id in found]
    unique = {Path(s).name: facts for s, facts in found.items() if bases.count(Path(s).name) == 1}
    return {**unique, **found}
