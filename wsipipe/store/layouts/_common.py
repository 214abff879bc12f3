"""What all layouts share: the bags of a run, facts about slides, and writing a plain HDF5 file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.store._layout import lay_out
from wsipipe.store.features import FeatureFile, FeatureMeta, Features, content_hash, read_features
from wsipipe.store.publish import publishing
from wsipipe.store.tables import feature_files
from wsipipe.types import Coords, FloatArray

__all__ = ["Bag", "SlideFacts", "Wanted", "bags_of_run", "flat_names", "foreign_file", "publish_h5"]


@dataclass(frozen=True)
class Bag:
    """One feature file of a run, features mapped."""

    encoder: str
    slide_id: str
    content: Features
    tissue: Path | None

    @property
    def tile_px(self) -> int:
        """Tile edge at the target resolution."""
        return int(self.content.attrs["tile_px"])

    @property
    def level0_mpp(self) -> float:
        """µm per level-0 pixel."""
        return float(self.content.attrs["level0_mpp"])


def bags_of_run(out: Path, encoders: list[str] | None) -> list[Bag]:
    """All bags, sorted by encoder and slide.

    Raises:
        ConfigError: There are none, or an encoder has none.
        CorruptFileError: A file is damaged.
    """
    files = feature_files(out)
    present = sorted({encoder for encoder, _ in files})
    for name in encoders or ():
        if name not in present:
            listed = ", ".join(present) or "nothing"
            raise ConfigError(f"{out} has no features of {name!r}.", f"It has: {listed}.")
    bags = []
    for (encoder, slide_id), path in sorted(files.items()):
        if encoders is None or encoder in encoders:
            tissue = out / "tissue" / f"{slide_id}.geojson"
            content = read_features(path, lazy=True)
            if "level0_mpp" not in content.attrs:
                raise ConfigError(
                    f"{path} says nothing about itself.", "Bring it in by `wsipipe import` first."
                )
            bags.append(Bag(encoder, slide_id, content, tissue if tissue.is_file() else None))
    if not bags:
        raise ConfigError(f"{out} holds no features.", "Name the --out folder of an extract run.")
    return bags


def flat_names(slide_ids: Iterable[str]) -> dict[str, str]:
    """Slide id -> base name, for layouts without folders; the whole id where base names clash."""
    unique = sorted(set(slide_ids))
    bases = Counter(Path(s).name for s in unique)
    return {s: Path(s).name if bases[Path(s).name] == 1 else s.replace("/", "__") for s in unique}


def publish_h5(
    path: Path,
    datasets: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    finish: Callable[[h5py.File], None] = lambda _: None,
) -> Path:
    """Publish an HDF5 file of `datasets` (name -> values), `attributes` (name or "/" -> them)."""

    def complete(h5: h5py.File) -> None:
        finish(h5)
        for name, values in attributes.items():
            for key, value in values.items():
                h5[name].attrs[key] = value

    layout = lay_out(datasets, complete)
    with publishing(path) as temporary:
        layout.write_to(temporary)
    return path


@dataclass(frozen=True)
class SlideFacts:
    """What a slide itself says: µm per level-0 pixel, size, fingerprint."""

    mpp: float
    mpp_source: str = "given"
    width: int = 0
    height: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the user says about files that do not say it themselves.

    Attributes:
        facts: Slide id or base name -> facts (from the slides, or a manifest).
        slide_mpp: µm per level-0 pixel, for all slides without facts.
        encoder: Its name, where the files do not record it.
        tile_px: Tile edge as the encoder saw it, where the files do not record it.
    """

    facts: Mapping[str, SlideFacts] = field(default_factory=dict)
    slide_mpp: float | None = None
    encoder: str | None = None
    tile_px: int | None = None

    def facts_of(self, slide_id: str, recorded: SlideFacts | None = None) -> SlideFacts:
        """Facts of a slide: given ones win over `recorded`.

        Raises:
            ConfigError: Nobody says the mpp.
        """
        found = self.facts.get(slide_id) or self.facts.get(Path(slide_id).name)
        if found is not None:
            return found
        if self.slide_mpp is not None:
            size = (recorded.width, recorded.height) if recorded else (0, 0)
            return SlideFacts(self.slide_mpp, "given", *size)
        if recorded is not None and recorded.mpp > 0:
            return recorded
        raise ConfigError(
            f"{slide_id}: these files do not say how large a level-0 pixel is.",
            "Give the slides (--slides FOLDER or manifest), or one mpp for all (--slide-mpp F).",
        )

    def encoder_of(self, recorded: str | None) -> str:
        """The encoder's name: the given one wins.

        Raises:
            ConfigError: Nobody says it.
        """
        name = self.encoder or recorded
        if not name:
            raise ConfigError(
                "These files do not record their encoder.", "Say which it was: --encoder NAME."
            )
        return name


def foreign_file(
    *,
    source: str,
    slide_id: str,
    features: NDArray[Any],
    coords: Coords,
    facts: SlideFacts,
    encoder: str,
    tile_px: int,
    tile_px0: float,
    mpp: float,
    overlap_px: int,
) -> FeatureFile:
    """A feature file of this package from another tool's arrays; what is unknown stays unknown.

    `tissue_fraction` is NaN (not known), a row that is NaN throughout counts as a failed read.

    Args:
        source: The tool.
        features: (N, D) or (1, N, D) floats; kept as float16 or float32.
        tile_px: Tile edge at the target resolution, `tile_px0` in level-0 pixels.
        mpp: Nominal target µm per pixel.
        overlap_px: At the target resolution.
    """
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if features.ndim == 2 and not len(features) and not len(coords):
        features = features.reshape(0, features.shape[1])
    values: FloatArray = features.astype(np.float16 if features.dtype == np.float16 else np.float32)
    if values.ndim != 2 or len(values) != len(coords):
        raise ConfigError(f"{slide_id}: features {features.shape} do not fit {len(coords)} coords.")
    coords = np.ascontiguousarray(coords, np.int64)
    failed = np.asarray(np.isnan(values).all(axis=1), np.uint8)
    if not values.shape[1]:
        failed[:] = 0
    meta = FeatureMeta(
        slide_id=slide_id,
        slide_fingerprint=facts.fingerprint,
        encoder=encoder,
        encoder_revision="",
        pooling="",
        mpp=mpp,
        mpp_effective=facts.mpp * tile_px0 / tile_px,
        level0_mpp=facts.mpp,
        mpp_source=facts.mpp_source,
        tile_px=tile_px,
        tile_px0=tile_px0,
        stride_px=tile_px - overlap_px,
        overlap=overlap_px / tile_px,
        level0_width=facts.width,
        level0_height=facts.height,
        precision="",
        identity={
            "imported_from": source,
            "encoder": encoder,
            "tile_px": tile_px,
            "mpp": mpp,
            "content_sha256": content_hash({"features": values, "coords": coords}),
        },
        extra={"imported_from": source},
    )
    return FeatureFile(
        features=values,
        coords=coords,
        tissue_fraction=np.full(len(coords), np.nan, np.float32),
        tile_status=failed,
        meta=meta,
    )
