"""Colour: an embedded ICC profile applied, so that scanners become comparable."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.errors import SlideOpenError
from wsipipe.types import TileArray

__all__ = ["to_srgb"]


def to_srgb(path: str | Path, profile: bytes | None) -> Callable[[TileArray], TileArray] | None:
    """A function from the profile's RGB to sRGB (relative colorimetric is what viewers use).

    Returns:
        (h, w, 3) uint8 -> (h, w, 3) uint8; None where the slide has no profile, which leaves its
        pixels as they are.

    Raises:
        SlideOpenError: The embedded profile is damaged or not one of RGB colours.
    """
    if profile is None:
        return None
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != "RGB":
            raise SlideOpenError(
                path, f"its ICC profile is of {space} colours, not RGB", "Use --icc none."
            )
        _build(source)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise SlideOpenError(
            path, f"its ICC profile is damaged ({error})", "Use --icc none."
        ) from error
    # A littlecms transform keeps a cache of its last pixel, so each thread has its own.
    local = threading.local()

    def convert(pixels: TileArray) -> TileArray:
        from PIL import Image

        transform = getattr(local, "transform", None)
        if transform is None:
            transform = local.transform = _build(source)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(ImageCms.applyTransform(image, transform))

    return convert


def _build(source: Any) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        "RGB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
