"""What is true of a synthetic slide: its label, and where tissue, tumour and artefacts lie."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsipipe.store.publish import publish_bytes, publish_text
from wsipipe.synth.morphology import CLASSES, TUMOUR
from wsipipe.synth.noise import Enlarger
from wsipipe.synth.scene import Scene

Mask = npt.NDArray[np.bool_]
NORMAL, TUMOUR_LABEL = "normal", "tumour"
_COLOURS = {"tissue": (0, 128, 0), "tumour": (200, 0, 0), "pen": (0, 0, 200)}


@dataclass(frozen=True)
class SlideTruth:
    """Ground truth of one synthetic slide.

    Attributes:
        path: The slide.
        label: "tumour" or "normal".
        width: Level-0 pixels.
        height: Level-0 pixels.
        mpp: µm per level-0 pixel, also where the file does not say it.
        seed: The slide's seed.
        downsample: Level-0 pixels per pixel of the masks; mask pixel (row, column) is the value at
            the centre of its `downsample` x `downsample` level-0 pixels.
        masks: "tissue", "tumour" and each artefact -> (h, w) bool. Fat and lumens are tissue.
        settings: All that the slide was made from.
    """

    path: Path
    label: str
    width: int
    height: int
    mpp: float
    seed: int
    downsample: int
    masks: dict[str, Mask] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)

    @property
    def tissue(self) -> Mask:
        """(h, w) bool mask of tissue."""
        return self.masks["tissue"]

    @property
    def tumour(self) -> Mask:
        """(h, w) bool mask of tumour; all of it is tissue."""
        return self.masks["tumour"]

    @property
    def tissue_mm2(self) -> float:
        """Area of tissue in mm²."""
        return self._mm2(self.tissue)

    @property
    def tumour_mm2(self) -> float:
        """Area of tumour in mm²."""
        return self._mm2(self.tumour)

    @property
    def tumour_fraction(self) -> float:
        """Share of the tissue's area that is tumour, 0 without tissue."""
        return float(self.tumour.sum() / max(int(self.tissue.sum()), 1))

    def _mm2(self, mask: Mask) -> float:
        return float(mask.sum()) * (self.downsample * self.mpp / 1000) ** 2

    def fraction(self, name: str, boxes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Share of each box that a mask covers.

        Args:
            name: A key of `masks`.
            boxes: (N, 4) x0, y0, x1, y1 in level-0 pixels.

        Returns:
            (N,) float32 in [0, 1], to about one mask pixel.
        """
        mask = self.masks[name]
        table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
        table[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
        box = np.asarray(boxes, np.float64).reshape(-1, 4) / self.downsample
        x0, x1 = (np.clip(np.round(box[:, k]), 0, mask.shape[1]).astype(int) for k in (0, 2))
        y0, y1 = (np.clip(np.round(box[:, k]), 0, mask.shape[0]).astype(int) for k in (1, 3))
        covered = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
        return np.asarray(covered / np.maximum((x1 - x0) * (y1 - y0), 1), np.float32)

    def geojson(self, name: str) -> dict[str, Any]:
        """Outlines of a mask as a GeoJSON FeatureCollection in level-0 pixels, as QuPath reads."""
        return {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "geometry": geometry,
                    "properties": {
                        "objectType": "annotation",
                        "classification": {
                            "name": name.capitalize(),
                            "color": list(_COLOURS.get(name, (120, 120, 0))),
                        },
                    },
                }
                for geometry in _outlines(self.masks[name], self.downsample)
            ],
        }

    def save(self, folder: Path, slide_id: str) -> None:
        """Write `<mask>/<slide_id>.png`, `<mask>/<slide_id>.geojson` and `<slide_id>.json`.

        Raises:
            OutputError: The folder cannot be written.
        """
        for name, mask in self.masks.items():
            publish_bytes(folder / name / f"{slide_id}.png", _png(mask))
            outlines = json.dumps(self.geojson(name))
            publish_text(folder / name / f"{slide_id}.geojson", outlines)
        summary = {
            "slide_id": slide_id,
            "label": self.label,
            "width": self.width,
            "height": self.height,
            "mpp": self.mpp,
            "seed": self.seed,
            "mask_downsample": self.downsample,
            "tissue_mm2": round(self.tissue_mm2, 6),
            "tumour_mm2": round(self.tumour_mm2, 6),
            "tumour_fraction": round(self.tumour_fraction, 6),
            "settings": self.settings,
        }
        publish_text(folder / f"{slide_id}.json", json.dumps(summary, indent=1) + "\n")


def measure(scene: Scene, path: Path, settings: dict[str, Any]) -> SlideTruth:
    """Sample a scene's fields at the masks' pixel centres."""
    downsample = max(4, min(16, scene.step // 2))
    height, width = -(-scene.height // downsample), -(-scene.width // downsample)
    reader = Enlarger(scene.step // downsample)

    def at(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return reader.window(values, 0, 0, height, width)

    tissue = at(scene.tissue) > 0
    best = np.full((height, width), -np.inf, np.float32)
    winner = np.zeros((height, width), np.uint8)
    for kind in range(len(CLASSES)):
        score = at(scene.kinds[kind])
        winner[score > best] = kind
        np.maximum(best, score, out=best)
    masks: dict[str, Mask] = {"tissue": tissue, "tumour": tissue & (winner == TUMOUR)}
    masks |= {name: at(values) > 0 for name, values in scene.artefacts.items()}
    label = TUMOUR_LABEL if masks["tumour"].any() else NORMAL
    return SlideTruth(
        path, label, scene.width, scene.height, scene.mpp, scene.seed, downsample, masks, settings
    )


def _outlines(mask: Mask, downsample: int) -> list[dict[str, Any]]:
    """Polygons (with holes) around the pixels of a mask, exact to their edges."""
    import shapely
    import shapely.geometry

    runs = []
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    for row, line in enumerate(np.diff(padded, axis=1)):
        starts, ends = np.flatnonzero(line == 1), np.flatnonzero(line == -1)
        runs += [(a, row, b, row + 1) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    if not runs:
        return []
    corners = np.array(runs, np.float64) * downsample
    union = shapely.union_all(shapely.box(*corners.T))
    parts = sorted(shapely.get_parts(union), key=lambda p: p.bounds)
    return [dict(shapely.geometry.mapping(part.simplify(0))) for part in parts]


def _png(mask: Mask) -> bytes:
    data = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(data, format="PNG")
    return data.getvalue()
