"""The public names of `wsipipe.mil` are there, are cheap to reach, and stay what they are."""

from __future__ import annotations

import subprocess
import sys

import wsipipe as wp


def test_every_public_name_is_a_function_or_class_also_after_its_module_is_loaded():
    import wsipipe.mil.assumption
    import wsipipe.mil.prediction  # noqa: F401

    for name in wp.mil.__all__:
        assert callable(getattr(wp.mil, name)), name


def test_importing_the_package_loads_no_torch():
    code = "import sys, wsipipe as wp; wp.mil; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
