"""How many processors this process may really use, and how they are shared out.

`os.cpu_count()` is the machine's, not ours: in a container, a Slurm step or a pinned process it
over-states by an order of magnitude, and threads that wait for a core that never comes cost more
than they give.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Threads", "available_cpus", "share_threads"]

_CGROUP = Path("/sys/fs/cgroup")
# One Python interpreter dispatches about this many concurrent forwards before its lock is the
# limit; beyond, each stream gets more than one thread.
_MAX_STREAMS = 16


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Processors within affinity, cgroup quota (v1, v2) and scheduler's allotment; at least 1."""
    limits = [float(_affinity())]
    quota = _quota_v2(cgroup) or _quota_v1(cgroup)
    if quota is not None:
        limits.append(quota)
    for name in ("SLURM_CPUS_PER_TASK", "LSB_DJOB_NUMPROC", "OMP_THREAD_LIMIT"):
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 0:
            limits.append(float(text))
    return max(1, math.floor(min(limits) + 0.01))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_v2(root: Path) -> float | None:
    """Smallest cpu.max on the way from this process's group to the root."""
    own = ""
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = line[3:].strip("/")
    except OSError:
        return None
    found = []
    for folder in [root / own, *(root / own).parents]:
        if not folder.is_relative_to(root):
            break
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def _quota_v1(root: Path) -> float | None:
    for folder in (root / "cpu", root / "cpu,cpuacct"):
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and quota[0].isdecimal() and int(period[0]) > 0:
            return int(quota[0]) / int(period[0])
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


@dataclass(frozen=True)
class Threads:
    """Who gets how many threads.

    Attributes:
        decode: Threads that read and decode tiles.
        streams: Forwards that run side by side.
        intra: Threads within one forward.
    """

    decode: int
    streams: int
    intra: int


def share_threads(cpus: int, *, on_cpu: bool, workers: int | None = None) -> Threads:
    """Split `cpus` between decoding and the model.

    On CPU the model runs as independent streams of one thread each rather than as one forward of
    many threads: measured on two cores, ViT-S/16 in bf16, 113 tiles/s against 93, and a neighbour
    that takes one core costs that core's stream only, not the barrier of every layer. Decoding
    threads may be as many as processors: they sleep while the buffers are full.
    """
    if not on_cpu:
        return Threads(decode=workers or max(1, cpus - 1), streams=1, intra=max(1, min(cpus, 4)))
    streams = min(cpus, _MAX_STREAMS)
    return Threads(decode=workers or cpus, streams=streams, intra=max(1, cpus // streams))
