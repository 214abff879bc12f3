"""Small real slides, tiled pyramidal JPEG TIFFs as a scanner writes them, and a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile


def draw(width: int, height: int, seed: int, *, tissue: bool = True) -> np.ndarray:
    """White glass; pink and purple noise in a disc."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 242, np.uint8)
    if tissue:
        ys, xs = np.ogrid[:height, :width]
        inside = (xs - width / 2) ** 2 + (ys - height / 2) ** 2 < (0.4 * min(width, height)) ** 2
        noise = rng.normal(0, 12, (height, width, 1)) + np.array([185, 120, 170])
        image[inside] = np.clip(noise, 0, 255).astype(np.uint8)[inside]
    return image


def write_svs(
    path: Path,
    *,
    size: tuple[int, int] = (1024, 768),
    mpp: float | None = 0.5,
    seed: int = 0,
    tissue: bool = True,
) -> Path:
    """An Aperio-like slide; `mpp` None leaves the resolution out."""
    image = draw(*size, seed, tissue=tissue)
    about = f"Aperio Image Library v11.2.1 \r\n{size[0]}x{size[1]} (256x256) JPEG/RGB Q=85"
    if mpp is not None:
        about += f"|AppMag = {round(10 / mpp)}|MPP = {mpp:.4f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 4):
            level = image[::step, ::step]
            tif.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                description=about if step == 1 else f"{about} -> {level.shape[1]}x{level.shape[0]}",
                subfiletype=0 if step == 1 else 1,
                metadata=None,
            )
    return path


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A folder of three slides with tissue."""
    for number in range(3):
        write_svs(tmp_path / "slides" / f"s{number}.svs", seed=number)
    return tmp_path / "slides"


@pytest.fixture
def make_svs() -> Callable[..., Path]:
    return write_svs


NULL_ENCODER = """
import torch
import wsipipe

CARD = wsipipe.EncoderCard(name="{name}", dim=3, tile_px={tile_px}, mpp={mpp}, mean=None, std=None)


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor({scale}))

    def forward(self, x):
        {act}
        return x.mean(dim=(2, 3)) * self.scale


def build(card):
    return Mean()
"""


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[..., str]:
    """Writes an encoder file that gives mean colours: as fast as an encoder can be."""

    def make(
        name: str = "mean",
        tile_px: int = 64,
        mpp: float = 0.5,
        scale: float = 1.0,
        act: str = "",
        folder: str = ".",
    ) -> str:
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            NULL_ENCODER.format(name=name, tile_px=tile_px, mpp=mpp, scale=scale, act=act or "pass")
        )
        return str(path)

    return make


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two Ray nodes of one core each on this machine; `second` is the one that may be removed."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes.second = nodes.add_node(**small)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
