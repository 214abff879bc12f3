"""Open any slide, know its resolution, read its pixels."""

from __future__ import annotations

from wsipipe.slide.open import open_slide
from wsipipe.slide.slide import ReadPlan, Slide, ThumbnailImage, choose_level

__all__ = ["ReadPlan", "Slide", "ThumbnailImage", "choose_level", "open_slide"]
