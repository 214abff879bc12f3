"""The main job, as a newcomer would type it: `make demo`.

Makes three synthetic slides (or takes a folder of yours), extracts features with the embedded
encoder through the command line, and says where everything lies. Run it again: nothing is done
twice.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to fill")
    parser.add_argument("--slides", type=Path, help="slides of yours, instead of synthetic ones")
    options = parser.parse_args()
    out: Path = options.out
    slides: Path = options.slides or out / "slides"
    results = out / "results"

    if options.slides is None:
        status = run("synth", str(slides), "-n", "3", "--size", "4096")
        if status:
            return status
    elif not slides.exists():
        print(f"There is no folder {slides}. Use: make demo SLIDES=folder", file=sys.stderr)
        return 2
    started = time.monotonic()
    status = run("extract", str(slides), "--encoder", "texture", "--out", str(results))
    seconds = time.monotonic() - started
    table = results / "slides.csv"
    if not table.is_file():
        return status or 1
    show(table, seconds)
    places = {
        results / "features" / "texture": "one HDF5 file a slide: features, level-0 coords",
        results / "thumbnails": "outline and tile grid on each slide: look at these first",
        results / "tissue": "tissue outlines as GeoJSON; QuPath opens them",
        table: "one line a slide: status, resolution, tiles",
        results / "failures.csv": "what failed, and what to do about it",
    }
    if options.slides is None:
        places[slides / "truth"] = "where tissue and tumour really are"
        places[slides / "labels.csv"] = "which slides have tumour"
    listing(
        "Where everything lies:", {str(path): why for path, why in places.items() if path.exists()}
    )
    listing(
        "Next (in an activated environment: . .venv/bin/activate):",
        {
            "wsipipe encoders": "the catalogue of foundation models",
            f"wsipipe inspect {shlex.quote(str(slides))}": "what slides are, and what a run takes",
            "wsipipe COMMAND --help": "every command teaches by example",
        },
    )
    return status


def listing(title: str, lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    print(
        f"\n{title}", *(f"  {name.ljust(width)}   {why}" for name, why in lines.items()), sep="\n"
    )


def run(*arguments: str) -> int:
    """Run the installed command of this environment, showing the line."""
    print(f"\n$ wsipipe {shlex.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "wsipipe", *arguments], check=False).returncode


def show(table: Path, seconds: float) -> None:
    with table.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    columns = ("slide_id", "status", "mpp", "tissue_mm2", "tiles", "seconds")
    cells = [columns, *(tuple(row.get(name, "") for name in columns) for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    print()
    for line in cells:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    tiles = sum(int(row["tiles"] or 0) for row in rows)
    print(f"\n{tiles} tiles of {len(rows)} slides; the command took {seconds:.1f} s.")


if __name__ == "__main__":
    sys.exit(main())
