"""MIL training speed against a loop that takes one bag a step, in one run on one machine.

    python benchmarks/mil.py [--only ROW,ROW] [--rounds 1] [--data FOLDER] [--quick]

Each row can be run alone; a ratio is printed where its two rows stand in one run. --data keeps the
bags for the next run. Rows: one-bag-256, one-bag-384, cached-384, torchmil-384, ours-256, ours-384,
ours-tile-384, floor, read, memory, and (only when named, or with --all) many, million.

60 synthetic bags of 1,000 to 15,000 tiles x 1,024 fp16 (42 to train on, 18 to validate), gated
attention MIL 512-384. The baselines are re-enacted from their descriptions, not copied:

* one-bag loop: CLAM's defaults. fp32, one bag a step through a DataLoader, each read anew every
  epoch from a float32 `.pt` file; gated attention with 256 units ("small") or 384 ("big"), dropout
  .25, instance loss on the 8 most and least attended tiles, Adam.
* cached loop: every bag cached in memory in fp32, one bag a step, 384 units, dropout .25.

torchmil is run itself (its Trainer, ABMIL and dataset, bags cached in memory beforehand), where it
is installed: `pip install torchmil`. Without, its row says so.

bf16 is used where the CPU multiplies it. Elsewhere matrix products bound everybody: their share is
printed as lines of their own, measured here ("floor"). Ours drops units of all tiles together
(see `aggregators/abmil.py`), which leaves .65 of the arithmetic; "tile dropout" is ours with the
baselines' dropout.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from wsipipe.mil.bags import find_bags, open_rows
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.fitting import fit_runs, resolve_precision
from wsipipe.mil.losses import fit_criterion
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.runs import BagSet, Run
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.targets import Target

DIM = 1024
LABEL = Target("label", "classification", ("label",), ("0", "1"))
CPU = torch.device("cpu")
Seconds = tuple[float, float]


class Clock:
    """Seconds since it was made: of the wall, and of all cores (for a machine that is shared)."""

    def __init__(self) -> None:
        self.wall, self.cores = time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        """(wall, cores)."""
        return time.perf_counter() - self.wall, time.process_time() - self.cores


def make_bags(folder: Path, count: int, low: int, high: int) -> np.ndarray:
    """Write feature files (contiguous fp16) and float32 copies; returns the lengths."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)
    lengths[-1] = high
    done = folder / f"bags-{count}-{low}-{high}"
    if done.is_file():
        return lengths
    for name in ("h5", "pt", "npy", "y"):
        (folder / name).mkdir(parents=True)
    for i, n in enumerate(lengths):
        x = rng.standard_normal((n, DIM), dtype=np.float32).astype(np.float16)
        with h5py.File(folder / "h5" / f"b{i:03}.h5", "w") as h5:
            h5["features"] = x
        torch.save(torch.from_numpy(x.astype(np.float32)), folder / "pt" / f"b{i:03}.pt")
        np.save(folder / "npy" / f"b{i:03}.npy", x.astype(np.float32))
        np.save(folder / "y" / f"b{i:03}.npy", np.float32(i % 2))
    done.touch()
    return lengths


class OneBagModel(nn.Module):
    """Linear, gated attention, linear: what the one-bag trainers run."""

    def __init__(self, hidden: int = 512, attention: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(DIM, hidden), nn.ReLU(), nn.Dropout(0.25))
        self.a = nn.Sequential(nn.Linear(hidden, attention), nn.Tanh(), nn.Dropout(0.25))
        self.b = nn.Sequential(nn.Linear(hidden, attention), nn.Sigmoid(), nn.Dropout(0.25))
        self.c = nn.Linear(attention, 1)
        self.head = nn.Linear(hidden, 2)

        self.instance_heads = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(2))

    def forward(self, x: torch.Tensor, label: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.reduce(x)
        a = torch.softmax(self.c(self.a(h) * self.b(h)).T, dim=1)
        extra = x.new_zeros(())
        if label is not None:
            k = min(8, len(x))
            rows = torch.cat([torch.topk(a[0], k).indices, torch.topk(-a[0], k).indices])
            truth = torch.tensor([1] * k + [0] * k)
            extra = nn.functional.cross_entropy(self.instance_heads[label](h[rows]), truth)
        return self.head(a @ h), extra


class PtBags(torch.utils.data.Dataset):
    """Bags from float32 `.pt` files, or from memory."""

    def __init__(self, files: list[Path], y: np.ndarray, cache: bool) -> None:
        self.files, self.y = files, y
        self.held = [torch.load(f, weights_only=True) for f in files] if cache else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x = torch.load(self.files[i], weights_only=True) if self.held is None else self.held[i]
        return x, int(self.y[i])


def one_bag_epoch(files: list[Path], y: np.ndarray, attention: int, cache: bool) -> Seconds:
    """Seconds of one epoch of the baseline."""
    torch.manual_seed(0)
    model = OneBagModel(attention=attention).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-5)
    loader = torch.utils.data.DataLoader(
        PtBags(files, y, cache), batch_size=1, shuffle=True, collate_fn=lambda batch: batch[0]
    )
    clock = Clock()
    for x, label in loader:
        logits, extra = model(x, None if cache else label)
        bag = nn.functional.cross_entropy(logits, torch.tensor([label]))
        loss = bag if cache else 0.7 * bag + 0.3 * extra
        _ = float(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return clock.read()


def torchmil_epoch(folder: Path, names: list[str]) -> Seconds | None:
    """Seconds of an epoch of torchmil's trainer, gated ABMIL 512-384; None where it is not here."""
    if importlib.util.find_spec("torchmil") is None:
        return None
    from torchmil.data import collate_fn
    from torchmil.datasets import ProcessedMILDataset
    from torchmil.models import ABMIL
    from torchmil.utils import Trainer

    def loader(which: list[str]) -> torch.utils.data.DataLoader:
        bags = ProcessedMILDataset(
            str(folder / "npy"), str(folder / "y"), bag_names=which, bag_keys=["X", "Y"]
        )
        for i in range(len(bags)):
            _ = bags[i]  # read before the clock runs: it keeps all bags in memory
        return torch.utils.data.DataLoader(bags, 1, shuffle=True, collate_fn=collate_fn)

    torch.manual_seed(0)
    reduce = nn.Sequential(nn.Linear(DIM, 512), nn.ReLU(), nn.Dropout(0.25))
    model = ABMIL(in_shape=(DIM,), att_dim=384, gated=True, feat_ext=reduce)
    trainer = Trainer(
        model, torch.optim.Adam(model.parameters(), 1e-4), device="cpu", disable_pbar=True,
        verbose=False,
    )  # fmt: skip
    bags, shortest = (
        loader(names),
        min(names, key=lambda n: (folder / "npy" / f"{n}.npy").stat().st_size),
    )
    one = loader([shortest])  # its trainer always validates; one short bag
    clock = Clock()
    trainer.train(1, bags, one)
    return clock.read()


def floor_seconds(tiles: int, hidden: int, attention: int) -> float:
    """Seconds of the matrix products of an epoch alone, in fp32, at this machine's own speed."""
    n = 8192
    x, h, vu = torch.randn(n, DIM), torch.randn(n, hidden), torch.randn(n, 2 * attention)
    w, g = torch.randn(hidden, DIM), torch.randn(2 * attention, hidden)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for product in ((x, w.t()), (h, g.t()), (vu, g), (vu.t(), h), (h.t(), x)):
            torch.mm(*product)
        best = min(best, time.perf_counter() - start)
    return best * tiles / n


def our_runs(
    count: int, y: np.ndarray, n_train: int, attention: int, folds: int, by_tile: bool = False
) -> list[Run]:
    """Runs as the trainer makes them: folds times seeds."""
    labels = np.stack([y, np.zeros_like(y)], axis=1).astype(np.float64)
    out = []
    for i in range(count):
        torch.manual_seed(i)
        model = create_aggregator(
            "abmil", in_dim=DIM, n_classes=2, attention_dim=attention, tile_dropout=by_tile
        )
        train = np.arange(n_train)
        if folds > 1:
            train = np.flatnonzero(np.arange(len(y)) % folds != i % folds)
        run = Run(
            f"r{i}", model, (fit_criterion(LABEL, 0, labels, "balanced"),), train,
            np.arange(0), torch.from_numpy(labels[:, None].astype(np.float32)),
            TrainSettings(epochs=1, batch_bags=1), i,
        )  # fmt: skip
        run.prepare(CPU)
        out.append(run)
    return out


def ours_epoch(
    bags: BagSet, y: np.ndarray, n_train: int, precision: str, attention: int, by_tile: bool = False
) -> Seconds:
    """Seconds of one epoch of ours; every bag is read from its file."""
    runs = our_runs(1, y, n_train, attention, 1, by_tile)
    clock = Clock()
    fit_runs(runs, bags, device=CPU, precision=precision)
    return clock.read()


def peak_mb(command: str, folder: Path, extra: list[str]) -> float:
    """Peak memory of a child that does one thing."""
    said = subprocess.run(
        [sys.executable, __file__, "--child", command, "--folder", str(folder), *extra],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(said.stdout.split()[-1])


def child(command: str, folder: Path, n_train: int) -> None:
    """In a process of its own: peak resident memory in MB, without pages of mapped files."""
    files = find_bags(folder / "h5")
    y = np.arange(len(files)) % 2
    if command == "train":
        bags = BagSet(FeatureBank(files, budget_bytes=0), tuple((s,) for s in files))
        precision = resolve_precision("auto", CPU, 5000)
        fit_runs(our_runs(1, y, n_train, 384, 1), bags, device=CPU, precision=precision)
        print(_anonymous_peak())
    else:
        rows = open_rows(next(iter(find_bags(folder / "million").values())))
        model = create_aggregator("abmil", in_dim=DIM, n_classes=2).eval()
        start = time.perf_counter()
        with torch.no_grad():
            out = model.forward_chunks(rows)
        print(f"{time.perf_counter() - start:.1f} s, {tuple(out.attention.shape)}", file=sys.stderr)
        print(_anonymous_peak())


def _anonymous_peak() -> float:
    """Peak memory less what is mapped from files at the end (page cache, not ours).

    Not ru_maxrss: that starts with what the process had before it became this program.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    mapped = int(status["RssFile"].split()[0]) / 1024
    peak = int(status["VmHWM"].split()[0]) / 1024
    return round(peak - mapped, 1)


class Bench:
    """The bags, and a method a row; each returns seconds, or prints its own line."""

    def __init__(self, folder: Path, lengths: np.ndarray) -> None:
        self.folder, self.lengths = folder, lengths
        self.y = np.arange(len(lengths)) % 2
        self.n_train = len(lengths) * 7 // 10
        self.pt = sorted((folder / "pt").iterdir())
        self.found = find_bags(folder / "h5")
        self.precision = resolve_precision("auto", CPU, float(lengths.mean()))
        self.trained = int(lengths[: self.n_train].sum())

    def one_bag(self, units: int, cache: bool = False) -> Seconds:
        return one_bag_epoch(self.pt[: self.n_train], self.y, units, cache)

    def torchmil(self) -> Seconds | None:
        return torchmil_epoch(self.folder, [p.stem for p in self.pt[: self.n_train]])

    def ours(self, units: int, by_tile: bool = False) -> Seconds:
        bags = BagSet(FeatureBank(self.found, budget_bytes=0), tuple((s,) for s in self.found))
        return ours_epoch(bags, self.y, self.n_train, self.precision, units, by_tile)

    def floor(self) -> None:
        for what, sizes in (
            ("256 units", (512, 256)), ("384 units", (512, 384)),
            ("384 units, a quarter of all units dropped", (384, 288)),
        ):  # fmt: skip
            took = floor_seconds(self.trained, *sizes)
            print(f"floor: products alone, fp32, {what:42} {took:5.2f} s")

    def read(self) -> None:
        longest = max(self.found.values(), key=lambda f: f.rows)
        bank = FeatureBank({longest.slide_id: longest}, budget_bytes=0)
        reads = []
        for _ in range(10):
            start = time.perf_counter()
            float(bank.get(longest.slide_id)[-1, -1])
            reads.append(time.perf_counter() - start)
        print(f"warm read of {longest.rows:,} tiles: {1000 * min(reads):.1f} ms (bar: 15)")

    def memory(self) -> None:
        peak = peak_mb("train", self.folder, [])
        print(f"peak memory of training: {peak:.0f} MB beside mapped pages (bar: 1,300)")

    def many(self) -> None:
        bags = BagSet(FeatureBank(self.found), tuple((s,) for s in self.found))
        runs = our_runs(15, self.y, self.n_train, 384, 5)
        clock = Clock()
        fit_runs(runs, bags, device=CPU, precision=self.precision)
        took = clock.read()
        one = one_bag_epoch(self.pt[: len(self.pt) * 4 // 5], self.y, 256, False)
        wall, cores = (t / (15 * o) for t, o in zip(took, one, strict=True))
        print(
            f"5 folds x 3 seeds: {took[0]:.1f} s, {wall:.2f} of 15 one-bag runs (bar: .6); "
            f"by core seconds {cores:.2f}"
        )

    def million(self) -> None:
        target = self.folder / "million"
        target.mkdir(exist_ok=True)
        with h5py.File(target / "m.h5", "w") as h5:
            data = h5.create_dataset("features", (1_000_000, DIM), np.float16)
            part = np.random.default_rng(0).standard_normal((50_000, DIM)).astype(np.float16)
            for start_row in range(0, 1_000_000, 50_000):
                data[start_row : start_row + 50_000] = part
        print(f"1,000,000 tiles: {peak_mb('million', self.folder, []):.0f} MB beside mapped pages")
        (target / "m.h5").unlink()


TIMED = {
    "one-bag-256": ("one-bag loop, 256 units", lambda b: b.one_bag(256)),
    "one-bag-384": ("one-bag loop, 384 units", lambda b: b.one_bag(384)),
    "cached-384": ("cached fp32 loop, 384 units", lambda b: b.one_bag(384, True)),
    "torchmil-384": ("torchmil, 384 units", Bench.torchmil),
    "ours-256": ("wsipipe, mapped, 256 units", lambda b: b.ours(256)),
    "ours-384": ("wsipipe, mapped, 384 units", lambda b: b.ours(384)),
    "ours-tile-384": ("wsipipe, dropout by tile, 384 units", lambda b: b.ours(384, True)),
}
OTHERS = {"floor": Bench.floor, "read": Bench.read, "memory": Bench.memory}
LONG = {"many": Bench.many, "million": Bench.million}
BARS = (
    ("one-bag-256", "ours-256", 1.6),
    ("one-bag-384", "ours-384", 1.6),
    ("torchmil-384", "ours-384", 2.4),
)


def run_rows(bench: Bench, only: list[str], rounds: int) -> None:
    """Rows in turn, round by round; the best of each, and the ratios that the run allows."""
    times: dict[str, list[Seconds]] = {}
    for _ in range(rounds):
        for name, (what, go) in TIMED.items():
            if name not in only:
                continue
            took = go(bench)
            if took is None:
                print(f"  {what:40} skipped: not installed (pip install torchmil)", flush=True)
                continue
            times.setdefault(name, []).append(took)
            # Said at once: a run that is cut off has still measured something.
            print(f"  {what:40} {took[0]:7.2f} s {took[1]:7.2f} of cores", flush=True)
            gc.collect()
    best = {name: [min(v) for v in zip(*values, strict=True)] for name, values in times.items()}
    for slow, fast, bar in BARS:
        if slow in best and fast in best:
            wall, cores = (a / b for a, b in zip(best[slow], best[fast], strict=True))
            print(
                f"{fast} is {wall:.2f} x as fast as {slow} (bar: {bar}), "
                f"{cores:.2f} x by core seconds"
            )
    for name, row in {**OTHERS, **LONG}.items():
        if name in only:
            row(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tiles")
    parser.add_argument("--only", help="rows, with commas between")
    parser.add_argument("--all", action="store_true", help="the long rows too")
    parser.add_argument("--data", type=Path, help="folder of the bags, made once and kept")
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child, args.folder, len(find_bags(args.folder / "h5")) * 7 // 10)
        return
    rows = [*TIMED, *OTHERS, *LONG]
    only = args.only.split(",") if args.only else rows if args.all else [*TIMED, *OTHERS]
    if set(only) - set(rows):
        parser.error(f"rows are {', '.join(rows)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.data or Path(temporary)
        scale = 10 if args.quick else 1
        bench = Bench(folder, make_bags(folder, args.bags, 1000 // scale, 15000 // scale))
        print(
            f"{args.bags} bags, {bench.lengths.sum():,} tiles, {bench.trained:,} trained on; "
            f"ours in {bench.precision}; {args.threads} threads",
            flush=True,
        )
        run_rows(bench, only, args.rounds)


if __name__ == "__main__":
    main()
