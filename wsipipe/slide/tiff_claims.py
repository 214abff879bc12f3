"""What a TIFF says about its pixel size: vendor keys, OME-XML, resolution tags, objective power."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

from wsipipe.errors import SlideOpenError
from wsipipe.slide.mpp import claim, objective_claim
from wsipipe.slide.reader import MppClaim
from wsipipe.slide.tiff_file import Ifd, TiffFile

__all__ = ["find_claims", "ome_pixels"]

_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_UNIT_UM: Final = {2: 25400, 3: 10000}
_OME_UM: Final = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def find_claims(
    tiff: TiffFile, ifd: Ifd, description: str, ome: dict[str, str]
) -> tuple[list[MppClaim], str | None]:
    """Pixel sizes, most trusted source first, and the objective's power as it is written.

    Args:
        ome: As from `ome_pixels`; empty for other files.
    """
    claims: list[MppClaim] = []
    objective: str | None = None
    if description.startswith("Aperio"):
        facts = {
            part.split("=", 1)[0].strip(): part.split("=", 1)[1].strip()
            for part in description.split("|")[1:]
            if "=" in part
        }
        if "MPP" in facts:
            claims.append(claim("aperio.MPP", facts["MPP"]))
        objective = facts.get("AppMag")
    if ome.get("x"):
        claims.append(claim("ome.PhysicalSizeX", ome["x"], ome.get("y") or ome["x"]))
    unit = _UNIT_UM.get(tiff.integer(ifd, _UNIT, 2), 0)
    x, y = tiff.rational(ifd, _X_RESOLUTION), tiff.rational(ifd, _Y_RESOLUTION)
    if unit and x is not None and x > 0:
        along_y = y if y is not None and y > 0 else x
        claims.append(claim("tiff.XResolution", unit / x, unit / along_y))
    guess = objective_claim("objective power", objective)
    if guess is not None:
        claims.append(guess)
    return claims, objective


def ome_pixels(path: str | Path, description: str) -> dict[str, str]:
    """Pixel size in µm as text ("x", "y") of the first image; refuses stacks and channels."""
    if re.search(r"<!(DOCTYPE|ENTITY)", description):
        raise SlideOpenError(path, "OME-XML with entities is not read")
    try:
        root = ET.fromstring(description.strip())
    except ET.ParseError as error:
        raise SlideOpenError(path, f"damaged OME-XML ({error})") from error
    pixels = next((node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return {}
    get = pixels.attrib.get
    channels = [n for n in pixels if n.tag.rpartition("}")[2] == "Channel"]
    samples = sum(int(_digits(node.attrib.get("SamplesPerPixel", "1"))) for node in channels)
    planes = {key: int(_digits(get(f"Size{key}", "1"))) for key in ("Z", "T", "C")}
    for key, word in (("Z", "focal planes"), ("T", "time points")):
        if planes[key] > 1:
            raise SlideOpenError(
                path, f"a stack of {planes[key]} {word}", "Export one plane as 8-bit RGB."
            )
    if len(channels) > 1 and samples == len(channels) and planes["C"] > 3:
        raise SlideOpenError(
            path,
            f"{planes['C']} channels: multichannel fluorescence is not brightfield",
            "Export a brightfield image as 8-bit RGB.",
        )
    size = {}
    for axis in ("X", "Y"):
        said = get(f"PhysicalSize{axis}")
        factor = _OME_UM.get(get(f"PhysicalSize{axis}Unit", "µm"))
        if said and factor:
            try:
                value = float(said.replace(",", ".")) * factor
            except ValueError:
                continue
            size[axis.lower()] = repr(round(value, 12))
    return size


def _digits(text: str) -> str:
    return text if text.isdigit() and len(text) < 10 else "1"
