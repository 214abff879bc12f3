"""Python, packages, the slide reader, extras."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from wsipipe.doctor.finding import Finding

_GROUP = "software"
_OLDEST_PYTHON = (3, 11)
# 4.0.1 closes CVE-2026-48977: crafted Ventana files write to arbitrary memory.
_OLDEST_OPENSLIDE = Version("4.0.1")
_EXTRA_USES = {
    "tissue": "neural tissue detectors",
    "hf": "encoders that need transformers or open_clip",
    "mil": "wsipipe train, predict, heatmap",
    "pretrain": "wsipipe pretrain",
    "dicom": "DICOM by wsidicom",
    "zarr": "OME-Zarr",
    "s3": "slides at URLs",
    "ray": "--executor ray",
    "openvino": "faster encoders on CPUs",
    "report": "pictures in reports",
}


def python() -> Iterator[Finding]:
    """The interpreter and the system."""
    version = platform.python_version()
    detail = f"{version} on {platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST_PYTHON:
        yield Finding(_GROUP, "python", "broken", detail, "Install Python 3.11 or newer.")
    else:
        yield Finding(_GROUP, "python", "good", detail)


def packages() -> Iterator[Finding]:
    """What the main job needs, in the versions it needs."""
    try:
        own = importlib.metadata.version("wsipipe")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            _GROUP, "wsipipe", "warning", "runs from a folder; it is not installed",
            "From the checkout: pip install -e .",
        )  # fmt: skip
        return
    yield Finding(_GROUP, "wsipipe", "good", own)
    wrong = [text for needed in _requirements(None) if (text := _lack(needed))]
    if wrong:
        yield Finding(
            _GROUP, "packages", "broken", "; ".join(wrong), "From the checkout: pip install -e ."
        )
        return
    shown = ("torch", "timm", "openslide-python", "tifffile", "h5py", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in shown)
    yield Finding(_GROUP, "packages", "good", versions)


def readers(*, quick: bool) -> Iterator[Finding]:
    """OpenSlide loads, is new enough, and reads a slide that is made for the purpose."""
    remedy = "pip install --upgrade openslide-bin openslide-python"
    try:
        import openslide
    except (ImportError, OSError) as error:
        yield Finding(_GROUP, "OpenSlide", "broken", f"does not load: {error}", remedy)
        return
    version = str(openslide.__library_version__)
    try:
        old = Version(version) < _OLDEST_OPENSLIDE
    except InvalidVersion:
        old = True
    if old:
        yield Finding(
            _GROUP, "OpenSlide", "broken",
            f"{version}; older than {_OLDEST_OPENSLIDE}, which closes a security hole", remedy,
        )  # fmt: skip
        return
    yield Finding(_GROUP, "OpenSlide", "good", version)
    if not quick:
        yield _reads_a_slide()


def _reads_a_slide() -> Finding:
    from wsipipe.errors import WsipipeError
    from wsipipe.slide import open_slide
    from wsipipe.synth import make_slide

    name = "reading a slide"
    try:
        with tempfile.TemporaryDirectory(prefix="wsipipe-doctor-") as folder:
            # 2 µm/px: the textures of such a slide are small and quickly made.
            path = Path(folder) / "doctor.svs"
            make_slide(path, width=512, mpp=2.0, workers=1)
            with open_slide(path) as slide:
                pixels = slide.read(0, 0, 256, 256)
                reader = slide.reader
    except (WsipipeError, OSError) as error:
        return Finding(
            _GROUP, name, "broken", str(error),
            "Reinstall the readers: pip install --force-reinstall openslide-bin tifffile "
            "imagecodecs",
        )  # fmt: skip
    if pixels.shape != (256, 256, 3) or int(pixels.max()) < 128:
        return Finding(_GROUP, name, "broken", "the pixels are wrong", "Report this as a bug.")
    return Finding(_GROUP, name, "good", f"a synthetic slide, by the {reader} reader")


def extras() -> Iterator[Finding]:
    """Optional packages: which are there, and how to get the others."""
    missing, present = [], []
    for extra in _extra_names():
        needed = list(_requirements(extra))
        lacks = [text for requirement in needed if (text := _lack(requirement))]
        if needed and lacks:
            missing.append((extra, lacks))
        elif needed:
            present.append(extra)
    if present:
        yield Finding(_GROUP, "extras", "good", ", ".join(present))
    for extra, lacks in missing:
        yield Finding(
            _GROUP, f"extra [{extra}]", "note",
            f"for {_EXTRA_USES.get(extra, 'what it names')}: {', '.join(lacks)}",
            f"If you need it, from the checkout: pip install -e '.[{extra}]'",
        )  # fmt: skip


def _extra_names() -> list[str]:
    """Extras as the package declares them, without those that only gather others."""
    try:
        names = importlib.metadata.metadata("wsipipe").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [name for name in names if name not in ("all", "dev")]


def _requirements(extra: str | None) -> Iterator[Requirement]:
    """What this package asks for, without extras (None) or of one extra alone."""
    try:
        lines = importlib.metadata.requires("wsipipe") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name.lower() == "wsipipe":
            continue
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = requirement.marker is not None and requirement.marker.evaluate(
            {"extra": extra or ""}
        )
        if (extra is None and always) or (extra is not None and wanted and not always):
            yield requirement


def _lack(requirement: Requirement) -> str:
    """What is wrong with an installed package, or ""."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is not {requirement.specifier}"
    return ""
