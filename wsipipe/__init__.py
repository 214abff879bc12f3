"""wsipipe: whole-slide images in, features, MIL models and heatmaps out.

    import wsipipe as wp
    result = wp.extract("slides/", encoder="phikon", out="out")

Everything is imported when it is first used: `import wsipipe` loads neither torch nor OpenSlide.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that holds it. The one list of what is public (tests hold it to `__all__`).
_PUBLIC = {
    "open_slide": "wsipipe.slide",
    "Slide": "wsipipe.slide",
    "detect_tissue": "wsipipe.tissue",
    "TissueMask": "wsipipe.tissue",
    "make_grid": "wsipipe.tiling",
    "TileGrid": "wsipipe.tiling",
    "iter_tiles": "wsipipe.embed",
    "create_encoder": "wsipipe.encoders",
    "list_encoders": "wsipipe.encoders",
    "EncoderCard": "wsipipe.encoders",
    "extract": "wsipipe.pipeline",
    "read_features": "wsipipe.store",
    "WsipipeError": "wsipipe.errors",
    "SlideError": "wsipipe.errors",
    "SlideOpenError": "wsipipe.errors",
    "MissingMppError": "wsipipe.errors",
    "ResolutionError": "wsipipe.errors",
    "ReadError": "wsipipe.errors",
    "TissueError": "wsipipe.errors",
    "EncoderError": "wsipipe.errors",
    "ModelError": "wsipipe.errors",
    "UnknownEncoderError": "wsipipe.errors",
    "GatedEncoderError": "wsipipe.errors",
    "WeightsError": "wsipipe.errors",
    "OffCardError": "wsipipe.errors",
    "StoreError": "wsipipe.errors",
    "IdentityMismatchError": "wsipipe.errors",
    "CorruptFileError": "wsipipe.errors",
    "OutputError": "wsipipe.errors",
    "ConfigError": "wsipipe.errors",
    "MissingExtraError": "wsipipe.errors",
    "Drained": "wsipipe.errors",
}
_MODULES = ("mil", "pretrain", "testing")

__all__ = ["__version__", *_PUBLIC, *_MODULES]

if TYPE_CHECKING:
    from wsipipe.embed import iter_tiles as iter_tiles
    from wsipipe.encoders import EncoderCard as EncoderCard
    from wsipipe.encoders import create_encoder as create_encoder
    from wsipipe.encoders import list_encoders as list_encoders
    from wsipipe.errors import *  # noqa: F403
    from wsipipe.pipeline.extract import extract as extract
    from wsipipe.slide import Slide as Slide
    from wsipipe.slide import open_slide as open_slide
    from wsipipe.store import read_features as read_features
    from wsipipe.tiling import TileGrid as TileGrid
    from wsipipe.tiling import make_grid as make_grid
    from wsipipe.tissue import TissueMask as TissueMask
    from wsipipe.tissue import detect_tissue as detect_tissue


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"wsipipe.{name}")
    else:
        raise AttributeError(f"module 'wsipipe' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
