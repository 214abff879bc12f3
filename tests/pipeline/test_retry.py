"""Storage that fails for a moment is asked again; a bad slide is not."""

from __future__ import annotations

import errno

import pytest

from wsipipe.errors import SlideOpenError
from wsipipe.pipeline.retry import patiently


class Flaky:
    def __init__(self, faults: list[Exception]) -> None:
        self.faults, self.calls = faults, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return "open"


def wrapped(code: int) -> SlideOpenError:
    error = SlideOpenError("a.svs", "cannot be read")
    error.__cause__ = OSError(code, "fault")
    return error


def test_passing_faults_are_waited_out() -> None:
    work = Flaky([OSError(errno.EIO, "fault"), wrapped(errno.ESTALE)])
    assert patiently(work, pause_s=0) == "open"
    assert work.calls == 3


def test_the_third_fault_is_final() -> None:
    work = Flaky([wrapped(errno.EIO)] * 5)
    with pytest.raises(SlideOpenError):
        patiently(work, pause_s=0)
    assert work.calls == 3


@pytest.mark.parametrize("error", [SlideOpenError("a.svs", "text"), OSError(errno.ENOENT, "no")])
def test_what_will_not_pass_is_raised_at_once(error: Exception) -> None:
    work = Flaky([error])
    with pytest.raises(type(error)):
        patiently(work, pause_s=0)
    assert work.calls == 1
