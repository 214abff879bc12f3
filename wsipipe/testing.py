"""For tests of your own: synthetic slides, a fake encoder, the check that every encoder must pass.

from wsipipe import testing

truth = testing.make_slide(tmp_path / "a.svs", width=1024)
encoder = testing.write_encoder_file(tmp_path / "fake.py", dim=8)
wp.extract(truth.path, encoder=str(encoder), out=tmp_path / "out")
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.synth import SlideTruth, make_cohort, make_slide

if TYPE_CHECKING:
    import torch

    from wsipipe.encoders.check import check_encoder as check_encoder

    FakeEncoder: type[torch.nn.Module]

__all__ = [
    "FakeEncoder",
    "SlideTruth",
    "check_encoder",
    "make_cohort",
    "make_slide",
    "write_encoder_file",
]

_ENCODER_FILE = '''\
"""A fake encoder: mean colours of a grid of cells; {dim} numbers a tile."""

import wsipipe
from wsipipe.testing import FakeEncoder

CARD = wsipipe.EncoderCard(
    name={name!r}, dim={dim}, tile_px={tile_px}, mpp={mpp!r}, mean=None, std=None
)


def build(card):
    return FakeEncoder(card.dim)
'''


def write_encoder_file(
    path: str | Path, *, dim: int = 8, tile_px: int = 224, mpp: float | None = 0.5
) -> Path:
    """Write a Python file that `--encoder path/to/file.py` accepts.

    Args:
        path: File to write; its stem becomes the encoder's name.
        dim: Numbers a tile.
        tile_px: Tile edge in pixels.
        mpp: µm per pixel, or None for an encoder whose makers name none.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _ENCODER_FILE.format(name=path.stem, dim=dim, tile_px=tile_px, mpp=mpp)
    path.write_text(text, "utf-8")
    return path


def __getattr__(name: str) -> Any:
    # torch, and with it everything that needs it, is loaded when it is asked for.
    if name == "FakeEncoder":
        value: Any = _fake_encoder_class()
    elif name == "check_encoder":
        value = importlib.import_module("wsipipe.encoders.check").check_encoder
    else:
        raise AttributeError(f"module 'wsipipe.testing' has no attribute {name!r}")
    globals()[name] = value
    return value


def _fake_encoder_class() -> type[torch.nn.Module]:
    import torch

    class FakeEncoder(torch.nn.Module):
        """An encoder that costs nothing and whose numbers can be checked by hand.

        Number k of a tile is the mean of channel k % 3 over cell k // 3 (row-major) of the
        smallest square grid of cells that is large enough.
        """

        def __init__(self, dim: int = 8) -> None:
            super().__init__()
            self.dim = dim
            cells = -(-dim // 3)
            self.side = next(n for n in range(1, cells + 1) if n * n >= cells)

        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            """Map (B, 3, H, W) float to (B, dim)."""
            means = torch.nn.functional.adaptive_avg_pool2d(tiles, self.side)
            return means.flatten(2).transpose(1, 2).flatten(1)[:, : self.dim]

    return FakeEncoder
