"""Read ahead, batch, embed, hand rows back in order: the only place with threads and streams."""

from __future__ import annotations

from wsipipe.embed.tiles import TileJob, iter_tiles, plan_jobs, read_job

__all__ = ["TileJob", "iter_tiles", "plan_jobs", "read_job"]
