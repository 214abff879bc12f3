"""Synthetic H&E-like slides with known tissue, tumour and labels, for demos, tests and benchmarks.

The slides are real pyramidal TIFFs. Their textures repeat within a few hundred µm: they test that
software works, and are no evidence of anything biological.
"""

from wsipipe.synth.cohort import make_cohort, make_slide
from wsipipe.synth.truth import SlideTruth

__all__ = ["SlideTruth", "make_cohort", "make_slide"]
