"""Stages chained into runs: what is done, what is not, and how a run ends."""

from __future__ import annotations

from wsipipe.pipeline.extract import extract, run_extract
from wsipipe.pipeline.result import RunResult

__all__ = ["RunResult", "extract", "run_extract"]
