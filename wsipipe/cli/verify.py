"""`wsipipe verify`: what is broken."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wsipipe.errors import ConfigError, WsipipeError


def command(
    out: Annotated[
        Path, typer.Argument(help="Folder of a run, or of feature files.", show_default=False)
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Only structure and attributes, not the bytes.")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=0, help="Embed so many tiles anew and compare with what is stored.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Which tiles --sample draws.")] = 0,
    slides: Annotated[
        list[str] | None,
        typer.Option(help="Where the slides lie now, as extract had them; repeatable."),
    ] = None,
    pseudonymize: Annotated[
        Path | None, typer.Option(help="Key file of a run whose slides go by pseudonyms.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Open every file of a run and check every claim it makes. Damage found: exit code 1.

    Checked are structure, row counts, checksums, the identity against its text, that only failed
    reads have no numbers, the order of the coordinates, records against files. Leftovers of killed
    runs and mixed precisions are noted; they are no damage.

    --slides and --pseudonymize are for --sample, where the records do not say where slides lie.

    [bold]Examples[/bold]

      wsipipe verify wsipipe-out

      wsipipe verify wsipipe-out --quick

      wsipipe verify wsipipe-out --sample 20     # needs the slides and the weights

      wsipipe verify study --sample 20 --slides slides/ --pseudonymize keys/study.key
    """
    from wsipipe.store.verify import verify_run

    if not out.is_dir():
        raise ConfigError(f"{out} is not a folder.", "Name the --out folder of an extract run.")
    embed = None
    if sample:
        from wsipipe.pipeline.reembed import embedder_of_run

        embed = embedder_of_run(out, slides or (), pseudonymize)
    result = verify_run(out, quick=quick, sample=sample, embed=embed, seed=seed)
    if not result.files and not result.findings:
        raise ConfigError(f"{out} holds no feature files.", "Name the --out folder of a run.")
    if as_json:
        content = {"out": str(out), "damaged": result.damaged, **asdict(result)}
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        for finding in result.findings:
            told = f"{finding.severity}: {finding.path}: {finding.problem}"
            typer.echo(str(WsipipeError(told, finding.remedy)))
        typer.echo(_summary(result.files, result.tiles, result.sampled, result.worst_cosine))
    if result.damaged:
        raise typer.Exit(1)


def _summary(files: int, tiles: int, sampled: int, cosine: float | None) -> str:
    text = f"{files} feature files with {tiles:,} tiles looked at"
    if sampled:
        text += f"; {sampled} tiles embedded anew, least cosine {cosine:.5f}"
    return text + "."
