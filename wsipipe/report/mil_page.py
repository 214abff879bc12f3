"""`report.html` of `wsipipe train`: one self-contained page that a sceptic can question."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.report.mil_charts import (
    confusion_table,
    line_chart,
    reliability,
    roc_band,
    scatter_chart,
)

if TYPE_CHECKING:
    from wsipipe.mil.ensemble import FoldModel
    from wsipipe.mil.evaluation import OutOfFold
    from wsipipe.mil.fold_training import FoldTrainer
    from wsipipe.mil.plan import Plan
    from wsipipe.mil.targets import Target

__all__ = ["write_mil_page"]

SHOWN = 3
MAP_PX = 360
UNIT_BOX = (0.0, 1.0, 0.0, 1.0)

_STYLE = """
:root{--ink:#1c1e21;--soft:#5b6472;--line:#d9dce3;--paper:#fff;--bar:#7b4fa0;
--c0:#7b4fa0;--c1:#1f7a8c;--c2:#c0672b;--c3:#4a7d2c;--c4:#b3261e;--c5:#5b6472}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ea;--soft:#a3adba;--line:#3a3d44;--paper:#17181b;
--bar:#b48ad6;--c0:#b48ad6;--c1:#5cc0cf;--c2:#e89a66;--c3:#93c572;--c4:#ff8a80;--c5:#a3adba}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:74rem;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2.2rem}
.soft{color:var(--soft)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}.charts{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
figure{margin:0}.chart{width:21rem;max-width:100%}.chart svg{width:100%;height:auto}
figcaption{font-size:.85rem;color:var(--soft);overflow-wrap:anywhere}
svg text{fill:var(--soft);font-size:11px}.grid{stroke:var(--line)}.chance{fill:none;
stroke:var(--soft);stroke-dasharray:4 4}.band{fill:var(--bar);opacity:.18}
svg polyline{fill:none;stroke-width:2}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}
.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}.d0{fill:var(--c0)}.d1{fill:var(--c1)}.d2{fill:var(--c2)}
svg .l0{fill:var(--c0)}svg .l1{fill:var(--c1)}svg .l2{fill:var(--c2)}svg .l3{fill:var(--c3)}
svg .l4{fill:var(--c4)}svg .l5{fill:var(--c5)}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
.maps img{width:100%;border:1px solid var(--line);border-radius:6px;background:#fff}
.note{border-left:3px solid var(--bar);padding:.1rem .8rem;margin:.5rem 0}
code,pre{font-size:.85rem;overflow-wrap:anywhere;white-space:pre-wrap}
"""


def write_mil_page(
    path: Path,
    document: Mapping[str, Any],
    sections: Sequence[Mapping[str, Any]],
    plan: Plan,
    trainer: FoldTrainer,
    trained: Mapping[int, FoldModel],
) -> None:
    """Write the page.

    Args:
        document: Content of `metrics.json`.
        sections: One a target: `target`, `data` (out-of-fold predictions), `found` (figures).
    """
    from wsipipe.store.publish import publish_text

    first = plan.cohort.targets[0]
    body = [f"<h1>{_e(', '.join(t.name for t in plan.cohort.targets))}</h1>"]
    body.append(
        f'<p class="soft">{_e(document["aggregator"])} on {document["n_slides"]} slides of '
        f"{document['n_patients']} patients, {document['folds']} folds; wsipipe "
        f"{_e(document['wsipipe_version'])}</p>"
    )
    for note in document["notes"]:
        body.append(f'<p class="note">{_e(note)}</p>')
    for bad in document["failed"]:
        body.append(f'<p class="note"><b>{_e(bad["fold"])} failed:</b> {_e(bad["reason"])}</p>')
    for section in sections:
        several = len(sections) > 1
        if several:
            body.append(f"<h2>Target: {_e(section['target'].name)}</h2>")
        body.append(_figures(section["found"]))
        body.append(f'<p class="soft">{_e(document["caveat"])}</p>')
        body.append(_charts(section["target"], section["data"], section["found"]))
        body.append(_checks(section["found"]))
    body.append(_cohort(plan, trainer))
    body.append(_per_fold(sections[0]["found"] if sections else {}, plan, trained))
    body.append(_training(trained))
    if sections:
        body.append(_certain(first, sections[0]["data"], plan, trainer, trained))
    body.append("<h2>Settings</h2>")
    body.append(
        f"<p>Splits sha256 <code>{document['splits_sha256']}</code><br>Run "
        f"<code>{document['identity']}</code></p>"
    )
    said = {k: document[k] for k in ("features", "settings", "precision", "tier")}
    body.append(f"<pre>{_e(json.dumps(said, indent=1))}</pre>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_e(first.name)} - wsipipe train</title><style>{_STYLE}</style></head><body>"
        + "".join(body)
        + "</body></html>\n"
    )
    publish_text(path, page)


def _e(text: object) -> str:
    return html.escape(str(text))


def _n(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 1) -> str:
    """Columns from `numeric` on are right-aligned."""
    cls = [' class="n"' if i >= numeric else "" for i in range(len(head))]
    top = "".join(f"<th{c}>{_e(h)}</th>" for c, h in zip(cls, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{c}>{_e(v)}</td>" for c, v in zip(cls, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{lines}</table></div>'


def _figures(found: Mapping[str, Any]) -> str:
    rows = [
        [
            name.replace("_", " "),
            _n(v["pooled"]),
            f"{_n(v['ci_low'])} to {_n(v['ci_high'])}",
            _n(v["mean"]),
            _n(v["sd"]),
        ]
        for name, v in found["metrics"].items()
    ]
    head = ["", "pooled over patients", "95 % interval", "mean of folds", "sd"]
    return "<h2>Figures</h2>" + _table(head, rows)


def _charts(target: Target, data: OutOfFold, found: Mapping[str, Any]) -> str:
    repeat = min(data.outputs)
    tested = data.fold_of[repeat] >= 0
    said, y = data.outputs[repeat][tested], data.y[tested]
    if target.task == "regression":
        charts = [
            scatter_chart(
                "Out-of-fold predictions", y[:, 0], said[:, 0], x_label="truth", y_label="said"
            )
        ]
    elif target.task == "survival":
        charts = [_survival_chart(data, found, repeat)]
    else:
        charts = _class_charts(target, said, y[:, 0].astype(np.int64))
    return f'<div class="charts">{"".join(charts)}</div>'


def _class_charts(target: Target, p: Any, truth: NDArray[np.int64]) -> list[str]:
    from wsipipe.mil.metrics.bootstrap import draw_weights
    from wsipipe.mil.metrics.classification import confusion

    ones = np.ones((1, len(truth)))
    weights = draw_weights(len(truth), 500, 0, truth)
    binary = len(target.classes) == 2
    counts = np.bincount(truth, minlength=len(target.classes))
    # Folds that failed may have taken all patients of a class with them.
    which = [c for c in ([1] if binary else range(len(counts))) if 0 < counts[c] < len(truth)][:6]
    lines, band = [], None
    for c in which:
        fpr, tpr, low, high = roc_band(p[:, c], truth == c, weights)
        lines.append(("" if binary else target.classes[c], fpr, tpr))
        if binary:
            band = (fpr, low, high)
    title = "ROC, 95 % band" if binary else "ROC, one class against the rest"
    charts = [
        line_chart(
            title, lines, x_label="1 - specificity", y_label="sensitivity", box=UNIT_BOX,
            band=band, diagonal=True,
        )
    ]  # fmt: skip
    lines = [
        (f"{target.classes[c]} ({(truth == c).mean():.0%})", *_precision(p[:, c], truth == c))
        for c in which
    ]
    charts.append(
        line_chart(
            "Precision and recall", lines, x_label="recall", y_label="precision", box=UNIT_BOX
        )
    )
    top = p[:, 1] if binary else p.max(axis=1)
    right = truth == 1 if binary else p.argmax(axis=1) == truth
    mean, share, sizes = reliability(top, right)
    charts.append(
        line_chart(
            f"Calibration, {sizes.min()} to {sizes.max()} patients a point",
            [("", mean, share)],
            x_label="said" if binary else "confidence", y_label="seen", box=UNIT_BOX,
            diagonal=True, dots=True,
        )
    )  # fmt: skip
    matrix = confusion(truth, p.argmax(axis=1), len(target.classes), ones)[0]
    charts.append(confusion_table(matrix, target.classes))
    return charts


def _precision(score: Any, positive: Any) -> tuple[Any, Any]:
    order = np.argsort(-score, kind="stable")
    # Equal scores are one point: their order is that of the files.
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    hit = np.cumsum(positive[order])[last]
    recall, precision = hit / max(1, hit[-1]), hit / (last + 1)
    return np.r_[0, recall], np.r_[precision[0], precision]


def _survival_chart(data: OutOfFold, found: Mapping[str, Any], repeat: int) -> str:
    from wsipipe.mil.metrics.survival import kaplan_meier

    said = found["survival"]["high_risk"][str(repeat)]
    high = np.zeros(len(data.patients), dtype=bool)
    high[said["patients"]] = True
    tested = data.fold_of[repeat] >= 0
    lines, furthest = [], 0.0
    for name, rows in (("low risk", ~high & tested), ("high risk", high & tested)):
        if not rows.any():
            continue
        time, alive, _, _ = kaplan_meier(data.y[rows, 0], data.y[rows, 1])
        lines.append((f"{name} ({rows.sum()})", np.repeat(time, 2)[1:], np.repeat(alive, 2)[:-1]))
        furthest = max(furthest, float(time.max()))
    p = said["log_rank_p"]
    return line_chart(
        f"Kaplan-Meier at the median risk of the training parts; log-rank p = {p}",
        lines, x_label="time", y_label="survival", box=(0, furthest or 1, 0, 1),
    )  # fmt: skip


def _checks(found: Mapping[str, Any]) -> str:
    lines = []
    for name, value in (found.get("baselines") or {}).items():
        lines.append(f"{name.replace('_', ' ')}: {value} (a model that never looks at tissue)")
    if "permutation" in found:
        p = found["permutation"]
        lines.append(
            f"shuffled labels: {p['metric']} {_n(p['pooled'])} ({_n(p['ci_low'])} to "
            f"{_n(p['ci_high'])}); it must be chance"
        )
    if "survival" in found:
        s = found["survival"]
        lines.append(f"Uno's C (mean of folds): {_n(s['ipcw_c'])}")
        lines.append(f"integrated Brier score (mean of folds): {_n(s['integrated_brier'])}")
    if not lines:
        return ""
    return "<h2>Beside it</h2><ul>" + "".join(f"<li>{_e(x)}</li>" for x in lines) + "</ul>"


def _cohort(plan: Plan, trainer: FoldTrainer) -> str:
    rows = [["patients", str(len(trainer.patients))], ["slides", str(len(plan.cohort.slide_ids))]]
    tiles = [trainer.bank.rows(s) for s in plan.cohort.slide_ids]
    rows.append(["tiles a slide", f"{min(tiles)} to {max(tiles)}, median {np.median(tiles):g}"])
    for t, target in enumerate(plan.cohort.targets):
        y = trainer.patient_y[:, t]
        known = ~np.isnan(y[:, 0])
        if target.task == "classification":
            counts = Counter(target.classes[int(v)] for v in y[known, 0])
            said = ", ".join(f"{c}: {counts[c]}" for c in target.classes)
        elif target.task == "survival":
            said = f"{int(y[known, 1].sum())} events, median follow-up {np.median(y[known, 0]):g}"
        else:
            said = f"{y[known, 0].min():g} to {y[known, 0].max():g}"
        missing = f", {int((~known).sum())} missing" if (~known).any() else ""
        rows.append([target.name, said + missing])
    if plan.cohort.sites is not None:
        rows.append(["sites", str(len(set(plan.cohort.sites)))])
    return "<h2>Cohort</h2>" + _table(["", ""], rows, numeric=2)


def _per_fold(found: Mapping[str, Any], plan: Plan, trained: Mapping[int, FoldModel]) -> str:
    if not found:
        return ""
    shown = list(found["metrics"])[:6]
    rows = []
    for k in sorted(trained):
        fold = plan.folds[k]
        figures = [_n(found["metrics"][m]["per_fold"][k]) for m in shown]
        epochs = ", ".join(map(str, trained[k].info["best_epochs"]))
        rows.append(
            [f"{fold.repeat}/{fold.fold}", str(len(fold.train) + len(fold.val)),
             str(len(fold.test)), epochs, *figures]
        )  # fmt: skip
    head = ["repeat/fold", "train", "test", "best epochs", *(m.replace("_", " ") for m in shown)]
    return "<h2>Folds</h2>" + _table(head, rows)


def _training(trained: Mapping[int, FoldModel]) -> str:
    if not trained:
        return ""
    lines = []
    for k in sorted(trained)[:6]:
        log = trained[k].info["log"][0]
        y = np.array([e["val_loss"] for e in log], dtype=float)
        lines.append((f"fold {k}", np.arange(1, len(y) + 1, dtype=float), y))
    finite = np.concatenate([y[np.isfinite(y)] for _, _, y in lines])
    if not len(finite):
        return ""
    longest = max(len(y) for _, _, y in lines)
    box = (0.0, float(max(2, longest)), 0.0, float(max(finite.max() * 1.05, 1e-6)))
    chart = line_chart(
        "Inner validation loss, first inner split", lines, x_label="epoch", y_label="loss", box=box
    )
    return f'<h2>Training</h2><div class="charts">{chart}</div>'


def _certain(
    target: Target,
    data: OutOfFold,
    plan: Plan,
    trainer: FoldTrainer,
    trained: Mapping[int, FoldModel],
) -> str:
    """Most and least certain patients with the map of one slide, by the fold that held it out."""
    if target.task != "classification":
        return ""
    repeat = min(data.outputs)
    tested = np.flatnonzero(data.fold_of[repeat] >= 0)
    certainty = data.outputs[repeat][tested].max(axis=1)
    order = tested[np.argsort(-certainty, kind="stable")]
    groups = {"Most certain": order[:SHOWN], "Least certain": order[::-1][:SHOWN]}
    fold_at = {(f.repeat, f.fold): k for k, f in enumerate(plan.folds)}
    parts = ["<h2>Most and least certain</h2>"]
    for name, rows in groups.items():
        parts.append(f'<h3>{name}</h3><div class="maps">')
        for row in rows:
            p = data.outputs[repeat][row]
            patient = data.patients[row]
            said, truth = target.classes[int(p.argmax())], target.classes[int(data.y[row, 0])]
            picture = _map(
                plan, patient, trained.get(fold_at[repeat, int(data.fold_of[repeat][row])])
            )
            parts.append(
                f"<figure>{picture}<figcaption>{_e(patient)}: said {_e(said)} ({p.max():.2f}), "
                f"truth {_e(truth)}</figcaption></figure>"
            )
        parts.append("</div>")
    return "".join(parts)


def _map(plan: Plan, patient: str, model: FoldModel | None) -> str:
    """A small heatmap from cached features, or nothing where coordinates or their unit lack."""
    from wsipipe.errors import WsipipeError
    from wsipipe.mil.ensemble import Ensemble
    from wsipipe.mil.maps import explain, place_tiles
    from wsipipe.report.heatmap import TileMap, draw_heatmap

    slide = next(
        s for s, p in zip(plan.cohort.slide_ids, plan.cohort.patients, strict=True) if p == patient
    )
    if model is None:
        return ""
    file = plan.cohort.files[slide]
    try:
        place = place_tiles(file)
        found = explain(Ensemble([model]), file)
        tiles = TileMap(
            place.coords, found.values, place.tile_px0, place.size, place.mpp, slide, found.what
        )
        png = draw_heatmap(tiles, max_px=MAP_PX)
    except WsipipeError:
        return ""  # Other tools' files without coordinates have no place to draw at.
    return f'<img alt="heatmap of {_e(slide)}" src="data:image/png;base64,{_b64(png)}">'


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
