"""`wsipipe inspect`: open, measure, plan; write nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsipipe.config import ExtractSettings
    from wsipipe.pipeline.inspection import Probe, SlideFacts
    from wsipipe.pipeline.targets import Target


def command(
    slides: Annotated[
        list[str],
        typer.Argument(help="Slides, folders, a manifest .csv (path, slide_id, mpp), or URLs."),
    ],
    encoder: Annotated[
        list[str] | None, typer.Option(help="As for extract. Default: texture.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel; default: the card's.")] = None,
    tile_px: Annotated[int | None, typer.Option(help="Tile edge; default: the card's.")] = None,
    allow_off_card: Annotated[
        bool, typer.Option("--allow-off-card", help="Permit other values than the card's.")
    ] = False,
    mpp_tolerance: Annotated[float, typer.Option(help="As for extract.")] = 0.05,
    max_upsample: Annotated[float, typer.Option(help="As for extract.")] = 1.10,
    overlap: Annotated[float, typer.Option(help="As for extract.")] = 0.0,
    min_tissue: Annotated[float, typer.Option(help="As for extract.")] = 0.25,
    tissue: Annotated[str, typer.Option(help="As for extract.")] = "auto",
    slide_mpp: Annotated[float | None, typer.Option(help="As for extract.")] = None,
    device: Annotated[str, typer.Option(help="As for extract.")] = "auto",
    weights: Annotated[str | None, typer.Option(help="As for extract.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """What the slides are, and what a run over them would take. Nothing is written.

    Shows reader, size, levels, mpp and where it came from, and values that disagree; finds the
    tissue, counts the tiles, and times a few tiles and forwards to say how long a run would take.

    [bold]Examples[/bold]

      wsipipe inspect slides/
      wsipipe inspect a.svs --encoder phikon --json

    Exit code 1 where a slide would fail.
    """
    from wsipipe.cli._options import quiet_threads

    quiet_threads()
    from wsipipe.config import ExtractSettings
    from wsipipe.pipeline.inspection import inspect_slide
    from wsipipe.pipeline.targets import find_targets
    from wsipipe.slide.discover import find_slides

    settings = ExtractSettings.of(
        encoders=tuple(encoder or ("texture",)),
        mpp=mpp,
        tile_px=tile_px,
        allow_off_card=allow_off_card,
        mpp_tolerance=mpp_tolerance,
        max_upsample=max_upsample,
        overlap=overlap,
        min_tissue=min_tissue,
        tissue=tissue,
        slide_mpp=slide_mpp,
        device=device,
        weights=weights,
    )
    targets = find_targets(settings)
    facts = []
    for entry in find_slides(slides):
        facts.append(inspect_slide(settings, targets, entry))
        if not json_output:
            typer.echo(_slide_text(facts[-1]))
    total = _total(settings, targets, facts)
    if json_output:
        import json
        from dataclasses import asdict

        document = {"slides": [asdict(fact) for fact in facts], "total": total}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        typer.echo(_total_text(total))
    raise typer.Exit(1 if any(fact.error for fact in facts) else 0)


def _slide_text(fact: SlideFacts) -> str:
    lines = [f"{fact.slide_id}  ({fact.path})"]
    if fact.size is not None:
        lines.append(f"  {fact.size[0]} x {fact.size[1]} px, {fact.vendor or 'vendor unknown'}")
        because = f" ({fact.reader_reason})" if fact.reader_reason else ""
        lines.append(f"  reader   {fact.reader}{because}")
        levels = ", ".join(f"{w:g}x{h:g} (1:{dx:g})" for w, h, dx, _ in fact.levels)
        lines.append(f"  levels   {levels}")
        said = (
            "unknown" if fact.mpp is None else " x ".join(f"{m:g}" for m in sorted(set(fact.mpp)))
        )
        lines.append(f"  mpp      {said}, from {fact.mpp_source}")
        lines += [f"           {note}" for note in fact.mpp_notes]
    if fact.bounds is not None:
        lines.append(f"  scanned  {fact.bounds[2]} x {fact.bounds[3]} at {fact.bounds[:2]}")
    if fact.tissue_mm2 is not None:
        lines.append(f"  tissue   {fact.tissue_mm2:.2f} mm²")
    for name, count in fact.tiles.items():
        lines.append(f"  tiles    {count} for {name}, {fact.read[name]}")
    if fact.error:
        lines.append(f"  WOULD FAIL: {fact.error}")
    return "\n".join(lines)


def _total(
    settings: ExtractSettings, targets: list[Target], facts: list[SlideFacts]
) -> dict[str, Any]:
    """Tiles, bytes and hours over all slides that can be read."""
    from wsipipe.embed.resources import available_cpus

    tiles = {t.folder: sum(f.tiles.get(t.folder, 0) for f in facts) for t in targets}
    probes = {target.folder: _probe(settings, target) for target in targets}
    cpus = available_cpus()
    reading = [sum((f.read_s or (0, 0))[end] for f in facts) / cpus for end in (0, 1)]
    hours: list[float] | None = None
    if all(not isinstance(probe, str) for probe in probes.values()):
        rates = {name: probe.rate for name, probe in probes.items() if not isinstance(probe, str)}
        embedding = [sum(tiles[n] / rates[n][end] for n in rates) for end in (1, 0)]
        on_gpu = any(not isinstance(p, str) and p.device != "cpu" for p in probes.values())
        # A GPU embeds while processors read; on CPU both need the same processors.
        both = [max(e, r) if on_gpu else e + r for e, r in zip(embedding, reading, strict=True)]
        hours = [float(f"{seconds / 3600:.3g}") for seconds in both]
    return {
        "slides": len(facts),
        "would_fail": sum(1 for fact in facts if fact.error),
        "tiles": tiles,
        "bytes": sum(fact.bytes for fact in facts),
        "hours": hours,
        "encoders": {
            name: {"error": probe}
            if isinstance(probe, str)
            else {
                "device": probe.device,
                "precision": probe.precision,
                "tiles_per_s": [round(rate, 1) for rate in probe.rate],
            }
            for name, probe in probes.items()
        },
    }


def _probe(settings: ExtractSettings, target: Target) -> Probe | str:
    """How fast the encoder is, or why that cannot be said."""
    from wsipipe.errors import EncoderError, MissingExtraError
    from wsipipe.pipeline.inspection import probe_encoder

    try:
        return probe_encoder(settings, target)
    except (EncoderError, MissingExtraError) as error:
        return str(error)


def _total_text(total: dict[str, Any]) -> str:
    lines = [f"{total['slides']} slides, {total['would_fail']} would fail"]
    for name, count in total["tiles"].items():
        about = total["encoders"][name]
        if "error" in about:
            lines.append(f"{name}: {count} tiles; speed unknown: {about['error']}")
        else:
            low, high = about["tiles_per_s"]
            where = f"{about['device']}, {about['precision']}"
            lines.append(f"{name}: {count} tiles at {low:g} to {high:g} tiles/s ({where})")
    lines.append(f"{total['bytes'] / 1e6:.1f} MB of features to come")
    if total["hours"] is not None:
        low, high = (_duration(hours) for hours in total["hours"])
        lines.append(f"{low} to {high} on this machine as it is now, from a few timed tiles")
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
