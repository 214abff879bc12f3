"""Classical MIL sets as shipped: honest figures, and beside them what peeking would print.

    python benchmarks/mil_classic.py FOLDER/musk1/musk1.npz [more.npz] [--repeats 5] [--only peeked]

Honest: `wsipipe train` with its defaults on the folds that are shipped with the set; features
standardised on training parts, everything chosen by inner validation, test folds read once.
Peeked: the protocol of published code, re-enacted: each fold keeps the epoch, and the threshold,
that are best on its own test part. It is printed beside the honest figures to show the size of the
effect, nothing else.

A set is an .npz with `X` (N, D), `bag_ptr` (B + 1), `y` (B) and `train_mask` (repeats, folds, B).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from wsipipe.mil.bags import find_bags
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.crossval import train
from wsipipe.mil.fitting import fit_runs, predict_logits
from wsipipe.mil.losses import fit_criterion
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.runs import BagSet, Run
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.targets import Target

CPU = torch.device("cpu")


def write_set(folder: Path, source: Path, repeats: int, *, leak: bool = False) -> int:
    """Feature files, labels and the shipped folds; with `leak` the label stands among the features.

    Returns:
        Repeats written.
    """
    data = np.load(source)
    x, border, y, mask = (data[k] for k in ("X", "bag_ptr", "y", "train_mask"))
    if leak:
        x = np.concatenate([x, np.repeat(y, np.diff(border))[:, None].astype(np.float32)], axis=1)
    (folder / "f").mkdir(parents=True)
    for i in range(len(y)):
        np.save(folder / "f" / f"b{i:03}.npy", x[border[i] : border[i + 1]])
    lines = [f"b{i:03},{v}" for i, v in enumerate(y)]
    (folder / "labels.csv").write_text("\n".join(["slide_id,label", *lines]) + "\n")
    repeats = min(repeats, len(mask))
    rows = ["slide_id,repeat,fold"]
    for r in range(repeats):
        for k in range(mask.shape[1]):
            rows += [f"b{i:03},{r},{k}" for i in np.flatnonzero(~mask[r, k])]
    (folder / "splits.csv").write_text("\n".join(rows) + "\n")
    return repeats


def honest(folder: Path) -> dict[str, dict]:
    """Metrics of `wsipipe train` as it comes."""
    return train(
        folder / "f", folder / "labels.csv", target="label", splits=folder / "splits.csv",
        standardize=True, out=folder / "out",
    ).metrics["metrics"]  # fmt: skip


def peeked(folder: Path, source: Path, repeat: int) -> tuple[float, float]:
    """(accuracy, AUROC): mean over folds of the best epoch and threshold ON THE TEST PART."""
    data = np.load(source)
    y, mask = data["y"].astype(np.int64), data["train_mask"][repeat]
    files = find_bags(folder / "f")
    bank = FeatureBank(files)
    bags = BagSet(bank, tuple((s,) for s in files))
    target = Target("label", "classification", ("label",), ("0", "1"))
    labels = np.stack([y, np.zeros_like(y)], axis=1).astype(np.float64)
    runs = []
    for k, own in enumerate(mask):
        torch.manual_seed(k)
        rows = np.flatnonzero(own)
        run = Run(
            str(k), create_aggregator("abmil", in_dim=data["X"].shape[1], n_classes=2),
            (fit_criterion(target, 0, labels[rows], "balanced"),), rows, np.arange(0),
            torch.from_numpy(labels[:, None].astype(np.float32)), TrainSettings(), k,
            norm=bank.moments([list(files)[i] for i in rows]),
        )  # fmt: skip
        run.prepare(CPU)
        runs.append(run)
    best = np.zeros((len(runs), 2))

    def look(_epoch: int, _runs: object) -> None:
        for k, run in enumerate(runs):
            rows = np.flatnonzero(~mask[k])
            z = predict_logits([run], bags, rows.tolist(), device=CPU)[0]
            score, truth = z[:, 1] - z[:, 0], y[rows]
            cuts = [-np.inf, *score]
            accuracy = max(float(((score > c) == truth).mean()) for c in cuts)
            area = roc_auc_score(truth, score) if 0 < truth.sum() < len(truth) else np.nan
            best[k] = np.fmax(best[k], [accuracy, area])

    fit_runs(runs, bags, device=CPU, on_epoch=look)
    return float(best[:, 0].mean()), float(best[:, 1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peek-repeats", type=int, default=1)
    parser.add_argument("--only", choices=("honest", "peeked"), help="one of the two columns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for source in args.sets:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            n = write_set(folder, source, args.repeats)
            said = {} if args.only == "peeked" else honest(folder)
            seen: dict[str, float] = {}
            if args.only != "honest":
                both = [peeked(folder, source, r) for r in range(min(n, args.peek_repeats))]
                seen = dict(zip(("accuracy", "auroc"), np.mean(both, axis=0), strict=True))
        print(f"{source.stem}: {n} repeats of the shipped folds, {args.peek_repeats} peeked at")
        print(f"{'':20}{'honest, pooled (95 %)':28}{'mean of folds':16}PEEKED (no result)")
        for metric in ("auroc", "accuracy", "balanced_accuracy"):
            f = said.get(metric)
            text = f"{f['pooled']:.3f} ({f['ci_low']:.3f} to {f['ci_high']:.3f})" if f else "-"
            mean = f"{f['mean']:.3f}" if f else "-"
            peek = f"{seen[metric]:.3f}" if metric in seen else "-"
            print(f"{metric:20}{text:28}{mean:16}{peek}", flush=True)


if __name__ == "__main__":
    main()
