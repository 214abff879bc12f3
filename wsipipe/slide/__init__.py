"""Open any slide, know its resolution, read its pixels."""

from __future__ import annotations

from wsipipe.slide.discover import SlideEntry, find_slides
from wsipipe.slide.files import fingerprint
from wsipipe.slide.open import open_slide
from wsipipe.slide.slide import ReadPlan, Slide, choose_level
from wsipipe.slide.staging import Stage
from wsipipe.slide.thumbnail import ThumbnailImage

__all__ = [
    "ReadPlan",
    "Slide",
    "SlideEntry",
    "Stage",
    "ThumbnailImage",
    "choose_level",
    "find_slides",
    "fingerprint",
    "open_slide",
]
