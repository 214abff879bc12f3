"""The stage of `wsipipe tile`: tissue, then the grid, and on request the quality of each tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.pipeline.stages import StageResult, StageSettings, TissueStage
from wsipipe.slide.discover import SlideEntry
from wsipipe.store import check_file, identity_hash, read_attrs
from wsipipe.tissue import TissueMask, read_roi, roi_settings, tissue_settings
from wsipipe.tissue.quality import MEASURES, QualityFilter, slide_quality, tile_quality

if TYPE_CHECKING:
    from wsipipe.slide import Slide
    from wsipipe.tiling import TileGrid

__all__ = ["TileSettings", "TileStage"]

VERSIONS = {"grid": 1}


@dataclass(frozen=True, kw_only=True)
class TileSettings(StageSettings):
    """What `wsipipe tile` was asked to do, besides `StageSettings`.

    Attributes:
        tile_px: Tile edge in pixels at `mpp`.
        mpp: µm per pixel of the tiles.
        overlap, min_tissue, mpp_tolerance, max_upsample: As in `make_grid`.
        roi: GeoJSON file or folder to stay inside of; `roi_class` picks one class.
        quality: Measure each tile.
        filter: On the measures; implies `quality`.
    """

    tile_px: int = 224
    mpp: float = 0.5
    overlap: float = 0.0
    min_tissue: float = 0.25
    mpp_tolerance: float = 0.05
    max_upsample: float = 1.10
    roi: Path | None = None
    roi_class: str | None = None
    quality: bool = False
    filter: QualityFilter = field(default_factory=QualityFilter)

    @property
    def folder(self) -> str:
        """Name below `tiles/`."""
        return f"{self.tile_px}px-{self.mpp:g}mpp"

    @property
    def measures(self) -> bool:
        """Whether tiles have to be read."""
        return bool(self.quality or self.filter)


class TileStage(TissueStage):
    """Finds tissue, lays the grid and publishes coordinates."""

    def __init__(self, settings: TileSettings) -> None:
        super().__init__(settings)
        self.tile_settings = settings

    def check(self, entry: SlideEntry) -> None:
        """See `TissueStage.check`; also the coordinates that are there."""
        super().check(entry)
        if self.settings.recompute or not self.tiles_path(entry).exists():
            return
        stored = str(read_attrs(self.tiles_path(entry)).get("slide_fingerprint", ""))
        check_file(self.tiles_path(entry), self._identity(entry, stored)).raise_if_unusable()

    def run(self, entry: SlideEntry) -> StageResult:
        """One slide."""
        with self.open(entry) as slide:
            path = self.tiles_path(entry)
            identity = self._identity(entry, slide.fingerprint())
            if path.exists() and not self.settings.recompute:
                check_file(path, identity).raise_if_unusable()
                return self._tile_result(entry, read_attrs(path), kept=True)
            tissue = self.find(entry, slide)
            grid, quality = self._grid(entry, slide, tissue)
            self.publish_picture(entry, slide, tissue, grid)
            attributes = self._publish(entry, slide, tissue, grid, quality, identity)
        return self._tile_result(entry, attributes)

    def tiles_path(self, entry: SlideEntry) -> Path:
        """Where the coordinates of a slide lie."""
        folder = self.settings.out / "tiles" / self.tile_settings.folder
        return folder / f"{entry.slide_id}.h5"

    def _grid(
        self, entry: SlideEntry, slide: Slide, tissue: TissueMask
    ) -> tuple[TileGrid, dict[str, NDArray[np.float32]]]:
        from wsipipe.tiling import make_grid

        s = self.tile_settings
        roi = None
        if s.roi is not None:
            classes = () if s.roi_class is None else (s.roi_class,)
            roi = read_roi(s.roi, slide, slide_id=entry.slide_id, classes=classes)
        grid = make_grid(
            slide,
            None if s.tissue == "none" else tissue,
            tile_px=s.tile_px,
            mpp=s.mpp,
            overlap=s.overlap,
            min_tissue=s.min_tissue,
            mpp_tolerance=s.mpp_tolerance,
            max_upsample=s.max_upsample,
            roi=roi,
        )
        if not s.measures:
            return grid, {}
        return self._measured(slide, grid)

    def _measured(
        self, slide: Slide, grid: TileGrid
    ) -> tuple[TileGrid, dict[str, NDArray[np.float32]]]:
        from wsipipe.embed import iter_tiles

        quality = {name: np.full(len(grid), np.nan, dtype=np.float32) for name in MEASURES}
        for rows, tiles in iter_tiles(slide, grid, batch_size=64, workers=2, on_error="skip"):
            for name, values in tile_quality(tiles, grid.mpp_effective).items():
                quality[name][rows] = values
        keep = self.tile_settings.filter.keep(quality)
        return grid.pick(keep), {name: values[keep] for name, values in quality.items()}

    def _identity(self, entry: SlideEntry, fingerprint: str) -> dict[str, Any]:
        s = self.tile_settings
        roi = None
        if s.roi is not None:
            classes = () if s.roi_class is None else (s.roi_class,)
            roi = roi_settings(s.roi, slide_id=entry.slide_id, classes=classes)
        return {
            "tile_px": s.tile_px,
            "mpp": s.mpp,
            "overlap": s.overlap,
            "min_tissue": s.min_tissue,
            "mpp_tolerance": s.mpp_tolerance,
            "max_upsample": s.max_upsample,
            "tissue": tissue_settings(s.tissue, slide_id=entry.slide_id),
            "roi": roi,
            "quality": s.filter.settings() if s.measures else None,
            "slide_mpp": entry.mpp if entry.mpp is not None else s.slide_mpp,
            "slide_fingerprint": fingerprint,
            "versions": VERSIONS,
        }

    def _publish(
        self,
        entry: SlideEntry,
        slide: Slide,
        tissue: TissueMask,
        grid: TileGrid,
        quality: Mapping[str, NDArray[np.float32]],
        identity: Mapping[str, Any],
    ) -> dict[str, Any]:
        from wsipipe import __version__
        from wsipipe.store import canonical_json
        from wsipipe.store.layouts._common import publish_h5

        scale = grid.read.scale
        width, height = slide.dimensions
        root = {
            "encoding-type": "wsipipe-tiles",
            "encoding-version": "1",
            "wsipipe_version": __version__,
            "slide_id": entry.slide_id,
            "slide_fingerprint": slide.fingerprint(),
            "mpp": grid.mpp,
            "mpp_effective": grid.mpp_effective,
            "tile_px": grid.tile_px,
            "level0_mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "overlap": grid.overlap,
            "tiles": len(grid),
            "tissue_mm2": tissue.area_mm2,
            "pen_mm2": tissue.pen_mm2,
            **{f"quality_{name}": value for name, value in slide_quality(quality).items()},
            "identity": identity_hash(identity),
            "identity_json": canonical_json(identity),
        }
        # TRIDENT's names, as in the feature file.
        coords = {
            "patch_size": grid.tile_px,
            "patch_size_level0": max(1, round(grid.tile_px * float(scale[0] + scale[1]) / 2)),
            "level0_magnification": max(1, round(10 / slide.mpp)),
            "target_magnification": max(1, round(10 / grid.mpp)),
            "overlap": grid.tile_px - grid.read.stride_px,
            "level0_width": width,
            "level0_height": height,
            "name": Path(entry.slide_id).name,
        }
        datasets: dict[str, NDArray[Any]] = {
            "coords": grid.coords,
            "tissue_fraction": grid.tissue_fraction,
            **{f"quality/{name}": values for name, values in quality.items()},
        }
        publish_h5(self.tiles_path(entry), datasets, {"/": root, "coords": coords})
        return root

    def _tile_result(
        self, entry: SlideEntry, attributes: Mapping[str, Any], *, kept: bool = False
    ) -> StageResult:
        numbers: dict[str, Any] = {
            "tissue_mm2": round(float(attributes["tissue_mm2"]), 4),
            "pen_mm2": round(float(attributes["pen_mm2"]), 4),
            "tiles": int(attributes["tiles"]),
        }
        for name, value in attributes.items():
            if name.startswith("quality_"):
                value = float(value)
                numbers[name.removeprefix("quality_")] = value if np.isfinite(value) else None
        status = "done" if numbers["tiles"] else "empty"
        return StageResult(entry.slide_id, entry.path, status, kept, numbers)
