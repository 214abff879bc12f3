"""`wsipipe pull`: weights ahead of time, also for machines without network."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsipipe.errors import ConfigError, WsipipeError

if TYPE_CHECKING:
    from wsipipe.bundles import BundleEntry


def command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Encoders, as for --encoder.")
    ] = None,
    dest: Annotated[
        Path | None,
        typer.Option(help="A hub cache to fill instead of your own; use it with HF_HUB_CACHE=DIR."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Also write everything to this tar file.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Read a tar file of --bundle into the cache.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Fetch weights before they are needed.

    What is in the cache is used by every command without asking the hub again; pull asks it.

    Examples:

      wsipipe pull phikon uni

      wsipipe pull phikon --bundle phikon.tar      # on a machine with network

      wsipipe pull --from phikon.tar               # on the one without

      wsipipe pull phikon --dest /shared/hub       # then: HF_HUB_CACHE=/shared/hub wsipipe ...
    """
    from wsipipe.bundles import read_bundle

    if (source is None) == (not names):
        raise ConfigError("Name encoders to fetch, or a bundle with --from FILE.tar; not both.")
    if source is not None and bundle is not None:
        raise ConfigError("--bundle writes a tar file and --from reads one; give one of them.")
    if dest is not None:
        os.environ["HF_HUB_CACHE"] = str(dest)
    if source is not None:
        _report(read_bundle(source), as_json, [])
        return
    _pull(list(names or ()), bundle, as_json)


def _pull(names: list[str], bundle: Path | None, as_json: bool) -> None:
    from wsipipe.bundles import pull, write_bundle
    from wsipipe.encoders.registry import find
    from wsipipe.encoders.sourcing import source_of

    pulled, failures = [], []
    for name in names:
        try:
            recipe = find(name)
            if recipe.loads and recipe.folder is None:
                pulled.append(pull(source_of(recipe.card)))
                typer.echo(f"{recipe.card.name}: licence {recipe.card.licence}", err=True)
            else:
                typer.echo(f"{recipe.card.name}: nothing to fetch", err=True)
        except WsipipeError as error:
            # One encoder that cannot be had must not keep the others from being fetched.
            failures.append(error)
            typer.echo(f"wsipipe: {error}", err=True)
    if bundle is not None and not failures:
        if not pulled:
            raise ConfigError(
                f"Nothing to put into {bundle}: these encoders need no download.",
                "They work without network as they are.",
            )
        write_bundle(pulled, bundle)
        typer.echo(f"bundle: {bundle}", err=True)
    _report([entry for entry, _ in pulled], as_json, failures)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _report(entries: list[BundleEntry], as_json: bool, failures: list[WsipipeError]) -> None:
    from wsipipe.weights import repo_folder

    if as_json:
        document: dict[str, Any] = {
            "cache": [
                {
                    **asdict(entry),
                    "folder": str(repo_folder(entry.repo) / "snapshots" / entry.commit),
                }
                for entry in entries
            ],
            "failures": [{"error": error.problem, "remedy": error.remedy} for error in failures],
        }
        typer.echo(json.dumps(document, indent=1))
        return
    for entry in entries:
        size = sum(file.size for file in entry.files) / 1e6
        typer.echo(f"{entry.encoder}  {entry.repo}@{entry.commit[:12]}  {size:.1f} MB")
