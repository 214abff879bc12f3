"""Runs `wsipipe.extract` in processes that may be killed, forked from one that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "wsipipe.pipeline.running", "tests.pipeline.killing"])


def _work(slides: str, settings: dict[str, Any]) -> None:
    import torch

    import wsipipe

    torch.set_num_threads(1)
    result = wsipipe.extract(slides, **settings)
    os._exit(result.exit_code)


def start(slides: Any, **settings: Any) -> Any:
    """A process that extracts."""
    settings = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()}
    process = _CONTEXT.Process(target=_work, args=(str(slides), settings))
    process.start()
    return process


def run(slides: Any, **settings: Any) -> int:
    """Run to the end; the exit code."""
    process = start(slides, **settings)
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


def run_and_kill(slides: Any, after_s: float, **settings: Any) -> bool:
    """Kill it after so many seconds; true if it was still at work."""
    process = start(slides, **settings)
    process.join(after_s)
    if process.exitcode is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return True


def timed_run(slides: Any, **settings: Any) -> float:
    """Seconds of an unbroken run."""
    begun = time.monotonic()
    assert run(slides, **settings) == 0
    return time.monotonic() - begun
