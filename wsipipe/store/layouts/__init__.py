"""Other tools' layouts, both ways. One file a layout; `EXPORTERS` and `IMPORTERS` list them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from wsipipe.errors import ConfigError
from wsipipe.store.check import check_file
from wsipipe.store.features import FeatureFile, write_features
from wsipipe.store.layouts._common import Bag, SlideFacts, Wanted, bags_of_run
from wsipipe.store.pseudonyms import check_pseudonyms

__all__ = ["EXPORTERS", "IMPORTERS", "SlideFacts", "Wanted", "export_run", "import_run"]

# layout -> module with `export(bags, dest) -> paths`
EXPORTERS: Mapping[str, str] = {
    name: f"wsipipe.store.layouts.{name}"
    for name in ("trident", "clam", "stamp", "anndata", "parquet", "zarr")
}
# layout -> module with `read(folder, wanted) -> iterator of (encoder folder, FeatureFile)`
IMPORTERS: Mapping[str, str] = {name: EXPORTERS[name] for name in ("trident", "clam", "stamp")}


def export_run(
    out: str | Path, to: str, dest: str | Path, *, encoders: list[str] | None = None
) -> list[Path]:
    """Write the features of a run as another tool lays them out. Existing files are replaced.

    Args:
        out: Folder of the run.
        to: One of `EXPORTERS`.
        dest: Folder to write to.
        encoders: Folder names below `features/`; default all.

    Returns:
        The files (for zarr: the folders) that were written.

    Raises:
        ConfigError: No such layout, or nothing to export.
        MissingExtraError: The layout needs a package that is not installed.
    """
    module = import_module(_known(EXPORTERS, to, "--to"))
    bags = bags_of_run(Path(out), encoders)
    export: Callable[[list[Bag], Path], list[Path]] = module.export
    return export(bags, Path(dest))


def import_run(
    folder: str | Path, source: str, out: str | Path, wanted: Wanted, *, replace: bool = False
) -> list[Path]:
    """Bring another tool's features into `OUT/features/<encoder>/<slide_id>.h5`.

    Units are read from the files or given in `wanted`; what neither says is asked for.

    Args:
        folder: What the other tool wrote.
        source: One of `IMPORTERS`.
        out: Folder of the run.
        wanted: What the user says about the files.
        replace: Replace files of another identity that are there.

    Raises:
        ConfigError: No such layout, nothing found, or a fact is missing.
        IdentityMismatchError: A file of another identity is there; nothing was written.
    """
    module = import_module(_known(IMPORTERS, source, "--from"))
    read: Callable[[Path, Wanted], Iterator[tuple[str, FeatureFile]]] = module.read
    check_pseudonyms(Path(out), None)
    features = Path(out) / "features"
    if features.is_dir() and not replace:
        for encoder, file in read(Path(folder), wanted):
            path = features / encoder / f"{file.meta.slide_id}.h5"
            check_file(path, file.meta.identity).raise_if_unusable()
    written = [
        write_features(features / encoder / f"{file.meta.slide_id}.h5", file)
        for encoder, file in read(Path(folder), wanted)
    ]
    if not written:
        raise ConfigError(f"{folder} holds no {source} features.", "Name the folder it wrote to.")
    return written


def _known(table: Mapping[str, Any], name: str, option: str) -> str:
    if name not in table:
        raise ConfigError(f"{option} {name!r} is not known.", f"Choose of: {', '.join(table)}.")
    module: str = table[name]
    return module
