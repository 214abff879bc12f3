"""Embed a few stored tiles anew, from the slide itself, to compare them with what is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from wsipipe.errors import ConfigError, ReadError, SlideOpenError
from wsipipe.pipeline.privacy import slides_of_run
from wsipipe.store import Features, Records
from wsipipe.types import FloatArray, Rows

if TYPE_CHECKING:
    from wsipipe.encoders import Encoder
    from wsipipe.slide import Slide
    from wsipipe.slide.discover import SlideEntry
    from wsipipe.tiling import TileGrid

__all__ = ["ReEmbedder", "embedder_of_run"]

_SAY_WHERE = "Say with --slides PATH where it lies now, as `extract` was given it."


def embedder_of_run(
    out: Path, slides: Sequence[str] = (), key_file: Path | None = None
) -> ReEmbedder:
    """The embedder for the bags of the run in `out`.

    Args:
        slides: Where the slides lie now; without it, where the records say.
        key_file: The run's key, where it bears pseudonyms.

    Raises:
        ConfigError: There is no `run.yaml` that says which encoders were used, or the run bears
            pseudonyms and `slides` or the key is missing.
    """
    given = slides_of_run(out, slides, key_file)
    try:
        run = yaml.safe_load((out / "run.yaml").read_text(encoding="utf-8"))
        settings = run["settings"]
        names = {encoder["folder"]: encoder["name"] for encoder in run["encoders"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{out}/run.yaml does not say with which encoders the run was made.",
            "Sampling needs it; `wsipipe verify` without --sample does not.",
        ) from error
    return ReEmbedder(out, names, settings.get("weights"), given)


class ReEmbedder:
    """Calls the encoder on rows of a bag, their pixels read again; see `store.verify.Embedder`.

    Args:
        out: Folder of the run; its records say where the slides lie.
        names: Folder below `features/` -> encoder as the user wrote it.
        weights: The checkpoint of one's own, where the run used one.
        given: Slides by id, where they do not lie where the records say.
    """

    def __init__(
        self,
        out: Path,
        names: Mapping[str, str],
        weights: str | None = None,
        given: Mapping[str, SlideEntry] | None = None,
    ) -> None:
        self._given = given or {}
        self._out = out
        self._names = names
        self._weights = weights
        self._encoders: dict[tuple[str, str], Encoder] = {}

    def __call__(self, bag: Features, rows: Rows) -> FloatArray:
        """(k, D) float32 features of the tiles `rows` (k,) int64.

        Raises:
            SlideError: The slide is gone or cannot be read.
            ConfigError: The run does not say how the features were made.
            EncoderError: The weights cannot be had.
        """
        from wsipipe.embed.tiles import iter_tiles
        from wsipipe.slide import open_slide

        folder, slide_id = self._place(bag.path)
        slide_path = self._slide_path(slide_id)
        asked = json.loads(bag.attrs["identity_json"])
        encoder = self._encoder(folder, str(bag.attrs["precision"]))
        found = []
        with open_slide(slide_path, mpp=asked.get("slide_mpp"), icc=asked["icc"]) as slide:
            if slide.fingerprint() != bag.attrs["slide_fingerprint"]:
                raise SlideOpenError(slide_path, "the slide has changed since it was extracted")
            grid = _grid_of_rows(slide, asked, bag, rows)
            for _, tiles in iter_tiles(slide, grid, batch_size=16, workers=1):
                found.append(encoder(tiles).cpu().numpy())
        return np.concatenate(found)

    def _slide_path(self, slide_id: str) -> str:
        if slide_id in self._given:
            return str(self._given[slide_id].path)
        record = Records(self._out).read(slide_id)
        if record is None:
            raise ConfigError(f"{slide_id}: no record says where the slide lies.", _SAY_WHERE)
        if not Path(record.path).exists() and "://" not in record.path:
            raise SlideOpenError(record.path, "the slide is not there (any more)", _SAY_WHERE)
        return record.path

    def _place(self, path: Path) -> tuple[str, str]:
        inside = path.relative_to(self._out / "features").with_suffix("")
        return inside.parts[0], inside.relative_to(inside.parts[0]).as_posix()

    def _encoder(self, folder: str, precision: str) -> Encoder:
        from wsipipe.encoders import create_encoder

        if folder not in self._names:
            raise ConfigError(f"features/{folder} is not of the latest run.", "Run extract again.")
        key = (folder, precision)
        if key not in self._encoders:
            self._encoders[key] = create_encoder(
                self._names[folder], weights=self._weights, precision=precision or "auto"
            )
        return self._encoders[key]


def _grid_of_rows(slide: Slide, asked: Mapping[str, Any], bag: Features, rows: Rows) -> TileGrid:
    """The grid that holds only `rows` of the bag: laid over the whole slide, then picked."""
    from wsipipe.tiling import make_grid

    whole = make_grid(
        slide,
        None,
        tile_px=int(asked["tile_px"]),
        mpp=float(asked["mpp"]),
        overlap=float(asked["overlap"]),
        mpp_tolerance=float(asked["mpp_tolerance"]),
        max_upsample=float(asked["max_upsample"]),
    )
    places = {xy: i for i, xy in enumerate(map(tuple, whole.coords.tolist()))}
    try:
        picked = [places[tuple(xy)] for xy in bag.coords[rows].tolist()]
    except KeyError as error:
        raise ReadError(slide.path, f"no tile of the grid lies at {error.args[0]}") from error
    return whole.pick(picked)
