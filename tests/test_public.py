"""The public face: every name is there, and importing it stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import wsipipe

HEAVY = ("torch", "timm", "h5py", "cv2", "skimage", "openslide", "tifffile", "scipy", "pandas")


@pytest.mark.parametrize("name", wsipipe.__all__)
def test_every_public_name_resolves(name: str) -> None:
    if name in ("mil", "pretrain", "testing"):
        importlib.import_module(f"wsipipe.{name}")
    assert getattr(wsipipe, name) is not None


def test_errors_are_one_tree() -> None:
    from wsipipe import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), wsipipe.WsipipeError)


@pytest.mark.parametrize(
    "code",
    [
        "import wsipipe",
        "import wsipipe.cli; wsipipe.cli.app(['--help'], standalone_mode=False)",
        "import wsipipe.cli; wsipipe.cli.app(['extract', '--help'], standalone_mode=False)",
        "import wsipipe; wsipipe.list_encoders()",
    ],
)
def test_looking_imports_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.splitlines()[-1] == "[]"
