"""One self-contained HTML page about a run: what is done, what failed and why, what it looks like.

Nothing is loaded from elsewhere: styles and pictures lie inside the page. Pictures are the run's
own thumbnails (never a label or macro image), the first `MAX_PICTURES` of them.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from wsipipe import __version__
from wsipipe.store import SlideRow, count_statuses, fold
from wsipipe.store.tables import find_outliers

__all__ = ["RunFacts", "read_run", "render_run_page"]

MAX_PICTURES = 60
PICTURE_PX = 420

_STYLE = """
:root{--ink:#1c1e21;--soft:#667;--line:#d9dce3;--paper:#fff;--bar:#7b4fa0;
--done:#1f7a4d;--empty:#8a6d1a;--failed:#b3261e;--pending:#5b6472}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ea;--soft:#9aa;--line:#3a3d44;--paper:#17181b;
--bar:#b48ad6;--done:#5cc08c;--empty:#d9b44a;--failed:#ff8a80;--pending:#a3adba}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:72rem;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2.2rem}
.tiles{display:flex;flex-wrap:wrap;gap:1rem}
.tiles div{border:1px solid var(--line);border-radius:8px;padding:.6rem 1rem;min-width:7rem}
.tiles b{display:block;font-size:1.4rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right}.done{color:var(--done)}.empty{color:var(--empty)}.failed{color:var(--failed)}
.pending{color:var(--pending)}.soft{color:var(--soft)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
figure{margin:0}figure img{width:100%;border:1px solid var(--line);border-radius:6px}
figcaption{font-size:.85rem;overflow-wrap:anywhere}pre{overflow-x:auto;font-size:.85rem}
rect{fill:var(--bar)}text{fill:var(--soft);font-size:11px}
"""


@dataclass(frozen=True)
class RunFacts:
    """What the page shows, read from the files of a run."""

    rows: list[SlideRow]
    failures: list[dict[str, str]]
    settings: Mapping[str, Any]
    thumbnails: list[Path]
    out: Path


def read_run(out: str | Path) -> RunFacts:
    """Fold the files of a run; nothing is written.

    Raises:
        OSError: The folder cannot be read.
    """
    out = Path(out)
    rows, failures = fold(out)
    settings_file = out / "run.yaml"
    settings = yaml.safe_load(settings_file.read_text("utf-8")) if settings_file.is_file() else {}
    pictures = sorted((out / "thumbnails").rglob("*.jpg"))
    return RunFacts(rows, failures, settings or {}, pictures, out)


def render_run_page(facts: RunFacts) -> str:
    """The page, as one HTML text.

    Args:
        facts: See `read_run`.
    """
    counts = count_statuses(facts.rows)
    tiles = sum(row.tiles or 0 for row in facts.rows)
    seconds = sum(row.seconds or 0.0 for row in facts.rows)
    area = sum({row.slide_id: row.tissue_mm2 or 0.0 for row in facts.rows}.values())
    cards = [
        *((name, str(count), name) for name, count in counts.items()),
        ("tiles", f"{tiles:,}", ""),
        ("tissue", f"{area:,.1f} mm²", ""),
        ("work", _duration(seconds), ""),
    ]
    parts = [
        "<h1>wsipipe run</h1>",
        '<div class="tiles">',
        *(f'<div><b class="{kind}">{value}</b>{name}</div>' for name, value, kind in cards),
        "</div>",
        _failures(facts.failures),
        _outliers(facts.rows),
        _histogram("Tiles per slide", [row.tiles for row in facts.rows if row.tiles is not None]),
        _where_mpp_came_from(facts.rows),
        _slides(facts.rows),
        _gallery(facts.thumbnails, facts.out),
        _settings(facts.settings),
        f'<p class="soft">wsipipe {__version__}. For research use; not a medical device.</p>',
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>wsipipe run</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """`lines` hold ready HTML cells."""
    top = "".join(f"<th>{name}</th>" for name in head)
    rows = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{top}</tr>{rows}</table></div>'


def _cell(value: object, kind: str = "") -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'<td class="{kind}">{html.escape(text)}</td>'


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    if not failures:
        return ""
    lines = [
        [_cell(f["slide_id"]), _cell(f["stage"]), _cell(f["error"], "failed"), _cell(f["remedy"])]
        for f in failures
    ]
    table = _table(["slide", "stage", "what happened", "what to do"], lines)
    return f"<h2>Failed ({len(failures)})</h2>{table}"


def _outliers(rows: Sequence[SlideRow]) -> str:
    found = find_outliers(rows)
    if not found:
        return ""
    lines = [
        [_cell(slide_id), _cell(encoder), _cell(", ".join(flags))]
        for (slide_id, encoder), flags in found.items()
    ]
    table = _table(["slide", "encoder", "in what"], lines)
    return f"<h2>Unlike the others ({len(found)})</h2>{table}"


def _where_mpp_came_from(rows: Sequence[SlideRow]) -> str:
    sources = Counter({row.slide_id: row.mpp_source for row in rows if row.mpp_source}.values())
    if not sources:
        return ""
    lines = [[_cell(name), _cell(count, "n")] for name, count in sources.most_common()]
    return "<h2>Where the resolution came from</h2>" + _table(["source", "slides"], lines)


def _slides(rows: Sequence[SlideRow]) -> str:
    head = ["slide", "encoder", "status", "mpp", "size", "mm²", "tiles", "bad", "seconds", "reason"]
    lines = [
        [
            _cell(row.slide_id),
            _cell(row.encoder),
            _cell(row.status, row.status),
            _cell(row.mpp, "n"),
            _cell(f"{row.width} × {row.height}" if row.width else "", "n"),
            _cell(row.tissue_mm2, "n"),
            _cell(row.tiles, "n"),
            _cell(row.bad_tiles, "n"),
            _cell(row.seconds, "n"),
            _cell(row.reason),
        ]
        for row in rows
    ]
    return f"<h2>Slides ({len({row.slide_id for row in rows})})</h2>{_table(head, lines)}"


def _histogram(title: str, values: Sequence[int], bins: int = 24) -> str:
    """Bars of equal width from 0 to the largest value, as inline SVG."""
    if len(values) < 2 or max(values) == 0:
        return ""
    top = max(values)
    counts = Counter(min(bins - 1, value * bins // top) for value in values)
    most = max(counts.values())
    bars = "".join(
        f'<rect x="{i * 20}" y="{100 - 90 * n / most:.1f}" width="18" height="{90 * n / most:.1f}">'
        f"<title>{i * top // bins} to {(i + 1) * top // bins}: {n}</title></rect>"
        for i, n in sorted(counts.items())
    )
    width = bins * 20
    return (
        f'<h2>{title}</h2><svg viewBox="0 0 {width} 118" width="100%" style="max-width:{width}px" '
        f'role="img" aria-label="{title}">{bars}<text x="0" y="114">0</text>'
        f'<text x="{width}" y="114" text-anchor="end">{top:,}</text></svg>'
    )


def _gallery(thumbnails: Sequence[Path], out: Path) -> str:
    if not thumbnails:
        return ""
    shown = thumbnails[:MAX_PICTURES]
    more = f", the first {len(shown)} of {len(thumbnails)}" if len(shown) < len(thumbnails) else ""
    figures = "".join(
        f'<figure><img alt="{_id_of(path, out)}" src="data:image/jpeg;base64,{_small(path)}">'
        f"<figcaption>{_id_of(path, out)}</figcaption></figure>"
        for path in shown
    )
    return f'<h2>What was seen{more}</h2><div class="gallery">{figures}</div>'


def _id_of(path: Path, out: Path) -> str:
    relative = path.relative_to(out / "thumbnails").with_suffix("")
    return html.escape(relative.as_posix(), quote=True)


def _small(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        picture.thumbnail((PICTURE_PX, PICTURE_PX))
        buffer = BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    text = html.escape(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    return f"<h2>Settings and versions of the latest run</h2><pre>{text}</pre>"
