"""What the command line ends with when nobody foresaw the error."""

from __future__ import annotations

import errno

import pytest

from wsipipe import cli
from wsipipe.errors import WeightsError


def ends_with(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    return caught.value.code, capsys.readouterr().err


def test_our_own_errors_end_with_their_code(monkeypatch, capsys) -> None:
    code, text = ends_with(WeightsError("uni", "No weights", "Pull them."), monkeypatch, capsys)
    assert (code, text) == (3, "wsipipe: No weights. Pull them.\n")


def test_the_systems_errors_are_the_environments(monkeypatch, capsys) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/out/a.h5")
    code, text = ends_with(full, monkeypatch, capsys)
    assert code == 4
    assert "No space left on device: '/out/a.h5'" in text


def test_a_bug_is_not_a_finished_run(monkeypatch, capsys) -> None:
    monkeypatch.delenv("WSIPIPE_DEBUG", raising=False)
    code, text = ends_with(KeyError("features"), monkeypatch, capsys)
    assert code == 70
    assert "unexpected KeyError" in text
    assert "Traceback" not in text


def test_the_traceback_is_to_be_had(monkeypatch) -> None:
    monkeypatch.setenv("WSIPIPE_DEBUG", "1")
    monkeypatch.setattr(cli, "app", lambda **_: {}["features"])
    with pytest.raises(KeyError):
        cli.main([])
