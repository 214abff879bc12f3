"""Small charts as inline SVG: curves with bands, calibration, confusion, survival steps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["confusion_table", "line_chart", "reliability", "roc_band", "scatter_chart"]

Array = NDArray[np.float64]
W, H, PAD = 340, 300, 44


def _points(x: Array, y: Array, box: tuple[float, float, float, float]) -> str:
    x0, x1, y0, y1 = box
    px = PAD + (np.asarray(x) - x0) / (x1 - x0) * (W - PAD - 12)
    py = H - PAD - (np.asarray(y) - y0) / (y1 - y0) * (H - PAD - 12)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if (high - low) / (step * f) <= 5)
    first = np.ceil(low / step) * step
    return [float(v) for v in np.arange(first, high + step * 1e-6, step)]


def line_chart(
    title: str,
    series: Sequence[tuple[str, Array, Array]],
    *,
    x_label: str,
    y_label: str,
    box: tuple[float, float, float, float],
    band: tuple[Array, Array, Array] | None = None,
    diagonal: bool = False,
    dots: bool = False,
) -> str:
    """Lines over common axes.

    Args:
        series: (name, x, y); an empty name has no entry in the legend.
        box: x from, x to, y from, y to.
        band: x, lower, upper of a shaded interval.
        diagonal: Draw the line of chance.
        dots: Mark the points.
    """
    x0, x1, y0, y1 = box
    parts = [
        f'<figure class="chart"><svg viewBox="0 0 {W} {H}" role="img" aria-label="'
        f'{html.escape(title)}">'
    ]
    for v in _ticks(x0, x1):
        (px,) = (p.split(",")[0] for p in [_points(np.array([v]), np.array([y0]), box)])
        parts.append(f'<line class="grid" x1="{px}" x2="{px}" y1="12" y2="{H - PAD}"/>')
        parts.append(f'<text x="{px}" y="{H - PAD + 16}" text-anchor="middle">{v:g}</text>')
    for v in _ticks(y0, y1):
        (py,) = (p.split(",")[1] for p in [_points(np.array([x0]), np.array([v]), box)])
        parts.append(f'<line class="grid" y1="{py}" y2="{py}" x1="{PAD}" x2="{W - 12}"/>')
        parts.append(f'<text x="{PAD - 6}" y="{float(py) + 4}" text-anchor="end">{v:g}</text>')
    if band is not None:
        x, low, high = band
        ring = _points(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]), box)
        parts.append(f'<polygon class="band" points="{ring}"/>')
    if diagonal:
        ends = np.array([0.0, 1.0])
        parts.append(f'<polyline class="chance" points="{_points(ends, ends, box)}"/>')
    for i, (name, x, y) in enumerate(series):
        where = _points(x, y, box)
        parts.append(f'<polyline class="s{i % 6}" points="{where}"/>')
        if dots:
            for point in where.split():
                a, b = point.split(",")
                parts.append(f'<circle class="d{i % 6}" cx="{a}" cy="{b}" r="3"/>')
        if name:
            row = 24 + 16 * i
            parts.append(
                f'<text class="l{i % 6}" x="{W - 18}" y="{H - PAD - row}" '
                f'text-anchor="end">{html.escape(name)}</text>'
            )
    parts.append(
        f'<text x="{(W + PAD) / 2}" y="{H - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(12 {(H - PAD) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text></svg><figcaption>{html.escape(title)}</figcaption></figure>"
    )
    return "".join(parts)


def scatter_chart(title: str, x: Array, y: Array, *, x_label: str, y_label: str) -> str:
    """Truth against prediction, with the line of equality."""
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    high = high if high > low else low + 1
    box = (low, high, low, high)
    base = line_chart(
        title, [("", np.array([low, high]), np.array([low, high]))],
        x_label=x_label, y_label=y_label, box=box,
    )  # fmt: skip
    circles = "".join(
        '<circle class="d1" r="3" cx="{}" cy="{}"/>'.format(*p.split(","))
        for p in _points(x, y, box).split()
    )
    return base.replace("</svg>", circles + "</svg>")


def roc_band(
    score: Array, positive: NDArray[np.bool_], weights: Array
) -> tuple[Array, Array, Array, Array]:
    """ROC on 101 even false positive rates, and the 95 % band of the draws.

    Args:
        weights: (R, P) of the bootstrap.

    Returns:
        fpr, tpr, low, high; each (101,).
    """
    grid = np.linspace(0, 1, 101)
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]

    def curves(w: Array) -> Array:
        w = w[:, order]
        tp = np.cumsum(w * positive[order], axis=1)[:, last]
        fp = np.cumsum(w * ~positive[order], axis=1)[:, last]
        out = []
        for t, f in zip(tp, fp, strict=True):
            if t[-1] > 0 and f[-1] > 0:
                out.append(np.interp(grid, np.r_[0, f / f[-1]], np.r_[0, t / t[-1]]))
        return np.array(out)

    found = curves(weights)
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return grid, curves(np.ones((1, len(score))))[0], low, high


def reliability(
    p: Array, positive: NDArray[np.bool_], bins: int = 8
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Mean prediction and observed share in bins of equal counts, and the counts."""
    parts = [r for r in np.array_split(np.argsort(p, kind="stable"), bins) if len(r)]
    return (
        np.array([p[r].mean() for r in parts]),
        np.array([positive[r].mean() for r in parts]),
        np.array([len(r) for r in parts]),
    )


def confusion_table(matrix: NDArray[Any], classes: Sequence[str]) -> str:
    """Counts by truth (rows) and prediction (columns), shaded by the share of the row."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in classes)
    rows = []
    for name, line in zip(classes, matrix, strict=True):
        total = max(1, line.sum())
        cells = "".join(
            f'<td class="n" style="background:color-mix(in srgb,var(--bar) '
            f'{round(70 * v / total)}%,transparent)">{int(v)}</td>'
            for v in line
        )
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return (
        '<figure class="chart"><table class="conf"><tr><th>truth \\ said</th>'
        f"{head}</tr>{''.join(rows)}</table>"
        "<figcaption>Confusion (highest probability)</figcaption></figure>"
    )
