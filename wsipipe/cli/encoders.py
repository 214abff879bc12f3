"""`wsipipe encoders`: the catalogue as a table, one card, or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wsipipe.encoders.card import EncoderCard
    from wsipipe.encoders.registry import Recipe

# Wide enough for every column where the output is not a terminal.
_PIPE_WIDTH = 150


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show the card of this encoder.")
    ] = None,
    commercial: Annotated[
        bool, typer.Option(help="Only encoders whose licence allows commercial use.")
    ] = False,
    available: Annotated[
        bool, typer.Option(help="Only encoders that run now, without fetching anything.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show the encoders, or the card of one.

    A card says what the makers intended: resolution, tile size, normalisation, pooling, licence.

    Examples:

      wsipipe encoders

      wsipipe encoders virchow2

      wsipipe encoders --commercial --available

      wsipipe encoders --json
    """
    from wsipipe.encoders.registry import find, recipes

    if name is not None:
        recipe = find(name)
        if as_json:
            typer.echo(json.dumps(_full(recipe), indent=1))
        else:
            _print(_card_table(recipe))
        return
    shown = [
        recipe
        for recipe in recipes()
        if (recipe.card.commercial or not commercial) and (not available or _cached(recipe))
    ]
    if as_json:
        typer.echo(json.dumps([_row(recipe) for recipe in shown], indent=1))
        return
    _print(_catalogue_table(shown))
    typer.echo(
        f"{len(shown)} encoders. `wsipipe encoders NAME` shows a card; any timm:ARCH, "
        "hf-hub:ORG/REPO, checkpoint folder, .py or .yaml file is a name too.",
        err=True,
    )


def _cached(recipe: Recipe) -> bool:
    from wsipipe.encoders.sourcing import is_cached

    return is_cached(recipe)


def _row(recipe: Recipe) -> dict[str, Any]:
    """One entry of `--json`; the keys are part of the contract."""
    card = recipe.card
    return {
        "name": card.name,
        "aliases": list(card.aliases),
        "kind": card.kind,
        "dim": card.dim,
        "params": card.params,
        "tile_px": card.tile_px,
        "mpp": card.mpp,
        "pooling": card.pooling,
        "licence": card.licence,
        "commercial": card.commercial,
        "gated": card.gated,
        "cached": _cached(recipe),
    }


def _full(recipe: Recipe) -> dict[str, Any]:
    card = recipe.card
    return {**_row(recipe), **asdict(card), "speed": card.speed, "origin": recipe.origin}


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(table)


def _catalogue_table(shown: list[Recipe]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("encoder", style="cyan", no_wrap=True)
    for title in ("dim", "params", "tile", "mpp"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("pooling", "speed"):
        table.add_column(title, no_wrap=True)
    table.add_column("weights", no_wrap=True)
    table.add_column("commercial", no_wrap=True)
    table.add_column("licence", overflow="ellipsis", no_wrap=True)
    for recipe in shown:
        card = recipe.card
        table.add_row(
            card.name,
            str(card.dim),
            _millions(card.params),
            str(card.tile_px),
            "any" if card.any_size else "-" if card.mpp is None else f"{card.mpp:g}",
            card.pooling,
            card.speed,
            _access(recipe),
            "[green]yes[/]" if card.commercial else "no",
            card.licence,
        )
    return table


def _access(recipe: Recipe) -> str:
    """How one gets the weights, in a word."""
    card = recipe.card
    if _cached(recipe):
        return "[green]here[/]" if recipe.loads else "[green]none needed[/]"
    if card.public == "none":
        return "[red]your own[/]"
    if card.hub is None:
        return "[yellow]by hand[/]"
    return "[yellow]gated[/]" if card.gated else "open"


def _millions(params: int | None) -> str:
    if params is None:
        return "?"
    return f"{params / 1e6:.1f}M" if params < 1e9 else f"{params / 1e9:.2f}B"


def _card_table(recipe: Recipe) -> Table:
    from rich.table import Table

    card = recipe.card
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for title, value in _facts(card, recipe):
        if value:
            table.add_row(title, value)
    return table


def _facts(card: EncoderCard, recipe: Recipe) -> list[tuple[str, str]]:
    resized = card.resize_px not in (None, card.tile_px)
    transform = [f"resize to {card.resize_px} ({card.interpolation})"] if resized else []
    if card.crop_px is not None:
        transform.append(f"centre crop {card.crop_px}")
    if card.mean is not None and card.std is not None:
        transform.append(f"mean {_triple(card.mean)}, std {_triple(card.std)}")
    else:
        transform.append("not normalised, pixels 0..1")
    others = ", ".join(f"{pooling}: {name}" for pooling, name in card.alternatives.items())
    return [
        ("encoder", f"[cyan]{card.name}[/]"),
        ("also called", ", ".join(card.aliases)),
        ("kind", card.kind),
        ("features", f"{card.dim} numbers, pooling {card.pooling}"),
        ("other poolings", others),
        ("tiles", f"{card.tile_px} px at {_resolution(card)}"),
        ("transform", "; ".join(transform)),
        ("parameters", f"{_millions(card.params)}, {card.speed}"),
        ("precision", card.precision),
        ("architecture", card.arch or ""),
        ("weights", _access(recipe)),
        ("hub", card.hub or ""),
        ("revision", card.revision or ""),
        ("file", card.url or ""),
        ("sha256", card.sha256 or ""),
        ("licence", card.licence),
        ("commercial", "yes" if card.commercial else "no"),
        ("terms", card.terms_page or ""),
        ("paper", card.paper or ""),
        ("notes", "\n".join(card.notes)),
        ("unverified", "\n".join(card.unverified)),
    ]


def _resolution(card: EncoderCard) -> str:
    if card.mpp is None:
        return "a resolution you name with --mpp"
    return f"{card.mpp:g} µm per pixel"


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:g}" for value in values)
