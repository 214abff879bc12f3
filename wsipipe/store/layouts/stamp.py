"""STAMP's folders: `<extractor>/<slide>.h5` with `feats` (N, D) float16, `coords` (N, 2) in µm.

The unit is in the file's attributes (`unit` = "um"), the slide's mpp is not: level-0 pixels need
the slide, or its mpp. Layout: KatherLab/STAMP, `src/stamp/preprocessing/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from wsipipe.errors import ConfigError
from wsipipe.store.features import FeatureFile, open_h5, plain_attributes
from wsipipe.store.layouts._common import Bag, Wanted, foreign_file, publish_h5

__all__ = ["export", "read"]

# The first version whose files have all the attributes below; STAMP refuses files from versions
# newer than itself.
_STAMP_VERSION = "2.2.0"


def export(bags: list[Bag], dest: Path) -> list[Path]:
    """Write `bags`; coordinates become µm, features float16."""
    written = []
    for bag in bags:
        attrs = bag.content.attrs
        coords = (bag.content.coords * bag.level0_mpp).astype(np.float32)
        features = np.asarray(bag.content.features, np.float16)
        written.append(
            publish_h5(
                dest / bag.encoder / f"{bag.slide_id}.h5",
                {"coords": coords, "feats": features},
                {
                    "/": {
                        "stamp_version": _STAMP_VERSION,
                        "extractor": bag.encoder,
                        "unit": "um",
                        "tile_size_um": bag.tile_px * float(attrs["mpp_effective"]),
                        "tile_size_px": bag.tile_px,
                        "code_hash": str(attrs["identity"])[:8],
                        "feat_type": "tile",
                    }
                },
            )
        )
    return written


def read(folder: Path, wanted: Wanted) -> Iterator[tuple[str, FeatureFile]]:
    """All tile features below a folder; those of slides and patients are passed over."""
    for path in sorted(folder.rglob("*.h5")):
        with open_h5(path) as h5:
            if not isinstance(h5.get("feats"), h5py.Dataset) or "coords" not in h5:
                continue
            attrs = plain_attributes(h5.attrs)
            if attrs.get("feat_type", "tile") != "tile":
                continue
            features, coords_um = h5["feats"][()], h5["coords"][()]
        if attrs.get("unit") != "um":
            raise ConfigError(
                f"{path}: its coordinates have no unit 'um' ({attrs.get('unit')!r}).",
                "Extract it anew with a STAMP that records the unit.",
            )
        # 2.0 wrote `tile_size` for the edge in µm, and no edge in pixels.
        tile_um = attrs.get("tile_size_um", attrs.get("tile_size"))
        tile_px = attrs.get("tile_size_px") or wanted.tile_px
        if not tile_um or not tile_px:
            raise ConfigError(
                f"{path}: it does not say how large a tile is, in µm and in pixels.",
                "Give the pixels (224 for all of STAMP's encoders): --tile-px N.",
            )
        encoder = wanted.encoder_of(str(attrs.get("extractor", "")))
        slide_id = path.relative_to(folder).with_suffix("").as_posix()
        # `<folder>/<extractor>-<hash>/<slide>`: the first part is the extractor's, not the slide's.
        head, _, rest = slide_id.partition("/")
        if rest and head.startswith(str(attrs.get("extractor", "\0"))):
            slide_id = rest
        facts = wanted.facts_of(slide_id)
        yield (
            encoder,
            foreign_file(
                source="stamp",
                slide_id=slide_id,
                features=features,
                coords=np.rint(coords_um.astype(np.float64) / facts.mpp).astype(np.int64),
                facts=facts,
                encoder=encoder,
                tile_px=int(tile_px),
                tile_px0=float(tile_um) / facts.mpp,
                mpp=float(tile_um) / int(tile_px),
                overlap_px=0,
            ),
        )
