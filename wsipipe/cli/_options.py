"""Small things that several commands need before anything heavy is imported."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from wsipipe.errors import ConfigError

__all__ = [
    "MaxBlack",
    "MaxBlood",
    "MaxPen",
    "MeasureQuality",
    "MinFocus",
    "MinSaturation",
    "number_or_auto",
    "quiet_threads",
]

_PANEL = "Quality of tiles (filters are off unless given)"
MeasureQuality = Annotated[
    bool,
    typer.Option(
        "--quality",
        help="Measure each tile: focus, pen, blood, black, saturation.",
        rich_help_panel=_PANEL,
    ),
]
MinFocus = Annotated[
    float | None, typer.Option(help="Variance of the Laplacian at 1 µm/px.", rich_help_panel=_PANEL)
]
MinSaturation = Annotated[
    float | None, typer.Option(help="Mean saturation, 0 to 1.", rich_help_panel=_PANEL)
]
MaxPen = Annotated[
    float | None, typer.Option(help="Fraction of a tile, 0 to 1.", rich_help_panel=_PANEL)
]
MaxBlood = Annotated[
    float | None, typer.Option(help="Fraction of a tile, 0 to 1.", rich_help_panel=_PANEL)
]
MaxBlack = Annotated[
    float | None, typer.Option(help="Fraction of a tile, 0 to 1.", rich_help_panel=_PANEL)
]


def quiet_threads() -> None:
    """Let waiting OpenMP threads sleep. Must run before torch is imported.

    Spinning threads fight for a core that somebody else has taken: on two cores, one of them busy
    elsewhere, ViT-S/16 falls from 50 tiles/s to 6.5.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def number_or_auto(option: str, text: str) -> int | str:
    """ "auto", or a whole number of at least 1.

    Raises:
        ConfigError: It is neither.
    """
    if text == "auto":
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"{option} {text!r} is neither 'auto' nor a whole number above 0.")
