"""`python -m wsipipe.encoders.convert`; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wsipipe.encoders import convert
from wsipipe.errors import WsipipeError


def main(arguments: list[str] | None = None) -> int:
    """Convert and say what was written; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wsipipe.encoders.convert",
        description=convert.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=["pickled", "remedis"])
    parser.add_argument("input", type=Path, nargs="+", help="what the makers publish")
    parser.add_argument("output", type=Path, help="a .safetensors file")
    given = parser.parse_args(arguments)
    try:
        if given.kind == "pickled":
            from wsipipe.encoders.convert.pickled import convert_pickled

            count = convert_pickled(given.input, given.output)
        else:
            from wsipipe.encoders.convert.remedis import convert_remedis

            count = convert_remedis(given.input[0], given.output)
    except WsipipeError as error:
        sys.stderr.write(f"convert: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{given.output}: {count} tensors\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
