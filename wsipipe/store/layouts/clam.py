"""CLAM's folders.

    h5_files/<slide>.h5     features (N, D) float32, coords (N, 2) int32, no attributes
    pt_files/<slide>.pt     the features alone, as a tensor
    patches/<slide>.h5      coords (N, 2) int64 with patch_size, patch_level, downsample, level_dim

`coords` are level-0 pixels; a patch covers patch_size * int(downsample) of them. Layout:
mahmoodlab/CLAM, `wsi_core/WholeSlideImage.py`, `utils/file_utils.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from wsipipe.errors import ConfigError
from wsipipe.store.features import FeatureFile, open_h5, read_features
from wsipipe.store.layouts._common import (
    Bag,
    SlideFacts,
    Wanted,
    flat_names,
    foreign_file,
    publish_h5,
)
from wsipipe.store.layouts._tensor_file import publish_tensor
from wsipipe.store.publish import publish_text

__all__ = ["export", "read"]


def export(bags: list[Bag], dest: Path) -> list[Path]:
    """Write `bags`, one folder an encoder; features become float32, which CLAM expects."""
    names = flat_names(bag.slide_id for bag in bags)
    written: list[Path] = []
    listed: dict[str, list[str]] = {}
    for bag in bags:
        name, base = names[bag.slide_id], dest / bag.encoder
        listed.setdefault(bag.encoder, []).append(name)
        features = np.asarray(bag.content.features, np.float32)
        coords = bag.content.coords
        written.append(
            publish_h5(
                base / "h5_files" / f"{name}.h5",
                {"features": features, "coords": coords.astype(np.int32)},
                {},
            )
        )
        written.append(publish_tensor(base / "pt_files" / f"{name}.pt", features))
        known = bag.content.coords_attrs
        size = np.array([known["level0_width"], known["level0_height"]], np.int64)
        attributes = {
            "patch_size": known["patch_size_level0"],
            "patch_level": 0,
            "downsample": np.array([1.0, 1.0]),
            "downsampled_level_dim": size,
            "level_dim": size,
            "name": name,
            "save_path": "",
        }
        written.append(
            publish_h5(base / "patches" / f"{name}.h5", {"coords": coords}, {"coords": attributes})
        )
    for encoder, slides in listed.items():
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["slide_id", "process", "status"])
        writer.writerows([slide, 0, "processed"] for slide in sorted(slides))
        written.append(publish_text(dest / encoder / "process_list_autogen.csv", buffer.getvalue()))
    return written


def read(folder: Path, wanted: Wanted) -> Iterator[tuple[str, FeatureFile]]:
    """All bags below a folder that holds `h5_files/` (with `patches/` beside it or given back)."""
    encoder = wanted.encoder_of(None)
    h5_files = folder / "h5_files"
    if not h5_files.is_dir():
        if (folder / "pt_files").is_dir():
            raise ConfigError(
                f"{folder} has only pt_files: they hold no coordinates.",
                "Name the folder with h5_files beside them.",
            )
        return
    for path in sorted(h5_files.glob("*.h5")):
        bag = read_features(path)
        read_px, tile_px0, size = _footprint(folder, path.stem)
        facts = wanted.facts_of(path.stem, SlideFacts(0.0, "", *size))
        tile_px = wanted.tile_px or read_px
        yield (
            encoder,
            foreign_file(
                source="clam",
                slide_id=path.stem,
                features=np.asarray(bag.features),
                coords=bag.coords,
                facts=facts,
                encoder=encoder,
                tile_px=tile_px,
                tile_px0=tile_px0,
                mpp=facts.mpp * tile_px0 / tile_px,
                overlap_px=0,
            ),
        )


def _footprint(folder: Path, name: str) -> tuple[int, float, tuple[int, int]]:
    """Edge of a patch as read and in level-0 pixels, and the slide's size: the patching's file."""
    for candidate in (folder / "patches", folder.parent / "patches"):
        path = candidate / f"{name}.h5"
        if not path.is_file():
            continue
        with open_h5(path) as h5:
            known = h5["coords"].attrs if isinstance(h5.get("coords"), h5py.Dataset) else {}
            if "patch_size" not in known:
                continue
            if "patch_level" in known and "downsample" not in known and known["patch_level"]:
                continue
            # CLAM itself truncates the down-sample.
            scale = int(np.ravel(known.get("downsample", 1))[0])
            size = np.ravel(known["level_dim"]) if not int(known.get("patch_level", 0)) else ()
            width, height = (int(v) for v in size) if len(size) == 2 else (0, 0)
            read_px = int(known["patch_size"])
            return read_px, float(read_px * scale), (width, height)
    raise ConfigError(
        f"{name}: no patches/{name}.h5 says how large a patch is.",
        f"Copy the folder patches/ of the patching step into {folder}.",
    )
