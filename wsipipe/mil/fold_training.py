"""Train the folds of a plan: inner splits, grid, choices, saving and going on after a kill."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsipipe import __version__
from wsipipe.errors import CorruptFileError
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.base import Aggregator
from wsipipe.mil.calibration import fit_calibration
from wsipipe.mil.ensemble import FORMAT, VERSION, FoldModel, load_fold, name_digest, save_fold
from wsipipe.mil.fitting import fit_runs, predict_logits, resolve_precision
from wsipipe.mil.losses import Criterion, fit_criterion
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.runs import BagSet, Run
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.splits import Fold, inner_splits, splits_digest, strata
from wsipipe.mil.standardise import standardised

if TYPE_CHECKING:
    from wsipipe.mil.plan import Plan

__all__ = ["FoldTrainer"]

_SAVE_EVERY_S = 60.0
_SMALL_COHORT = 250
# Weights, two moments and the best state of all runs that are trained together.
_STATE_BYTES = 1 << 30


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


class FoldTrainer:
    """Trains what is missing of a plan, and knows which bags belong to whom."""

    def __init__(
        self,
        plan: Plan,
        bank: FeatureBank,
        out: Path,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.plan, self.bank, self.out, self.device, self.say = plan, bank, out, device, say
        cohort = plan.cohort
        self.patients = cohort.patient_list
        self.place = {p: i for i, p in enumerate(self.patients)}
        self.patient_y = cohort.patient_y()
        by_patient: dict[str, list[str]] = defaultdict(list)
        for slide, patient in zip(cohort.slide_ids, cohort.patients, strict=True):
            by_patient[patient].append(slide)
        if plan.slides_together:
            members = [tuple(by_patient[p]) for p in self.patients]
            owners = list(self.patients)
        else:
            members = [(s,) for s in cohort.slide_ids]
            owners = list(cohort.patients)
        self.owners = owners
        self.bags = BagSet(bank, tuple(members))
        tiles = np.mean([sum(bank.rows(s) for s in m) for m in members])
        self.precision = resolve_precision(plan.settings.precision, device, float(tiles))
        self._bags_of: dict[str, list[int]] = defaultdict(list)
        for i, owner in enumerate(owners):
            self._bags_of[owner].append(i)

    def bags_of(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """Indices of the bags of these patients."""
        return np.array([i for p in patients for i in self._bags_of[p]], dtype=np.int64)

    def folder(self, fold: Fold) -> Path:
        """Where the models of a fold lie; K counts over repeats."""
        return self.out / "models" / f"fold-{list(self.plan.folds).index(fold)}"

    def run(
        self, elsewhere: Callable[[FoldTrainer, list[int]], dict[int, str]] | None = None
    ) -> tuple[dict[int, FoldModel], list[tuple[str, str]]]:
        """Train every fold that is not yet whole.

        Args:
            elsewhere: Has folds trained by other processes into the same folder; which failed, and
                why.

        Returns:
            Fold number -> models, and the folds that failed with the reason.
        """
        done: dict[int, FoldModel] = {}
        failed: list[tuple[str, str]] = []
        todo = []
        for k, fold in enumerate(self.plan.folds):
            known = self._finished(fold)
            if known is None:
                todo.append(k)
            else:
                done[k] = known
        if done:
            self.say(f"{len(done)} of {len(self.plan.folds)} folds are finished and kept.")
        if elsewhere is not None and todo:
            reasons = elsewhere(self, todo)
            failed = [(f"fold-{k}", reason) for k, reason in sorted(reasons.items())]
            return done | {k: self._whole(k) for k in todo if k not in reasons}, failed
        for group in self._groups(todo):
            trained, bad = self._train_group(group, self.patient_y)
            done |= trained
            failed += bad
        return done, failed

    def train_fold(self, k: int) -> str:
        """Train fold k alone unless it is whole; why it failed, or nothing."""
        if self._finished(self.plan.folds[k]) is not None:
            return ""
        return dict(self._train_group([k], self.patient_y)[1]).get(f"fold-{k}", "")

    def _whole(self, k: int) -> FoldModel:
        folder = self.folder(self.plan.folds[k])
        model = self._finished(self.plan.folds[k])
        if model is None:
            raise CorruptFileError(
                folder, "was said to be trained and is not there.", "Is --out shared by all nodes?"
            )
        return model

    def permuted(self, seed: int = 1) -> dict[int, FoldModel]:
        """The first repeat again with labels dealt out anew; nothing is saved."""
        rng = np.random.default_rng([self.plan.settings.seed, seed])
        shuffled = self.patient_y[rng.permutation(len(self.patient_y))]
        first = [k for k, f in enumerate(self.plan.folds) if f.repeat == 0]
        self.say("Permutation run: the same training with shuffled labels.")
        out: dict[int, FoldModel] = {}
        for group in self._groups(first):
            out |= self._train_group(group, shuffled, save=False)[0]
        return out

    def _finished(self, fold: Fold) -> FoldModel | None:
        folder = self.folder(fold)
        if not (folder / "model.json").is_file():
            return None
        try:
            model = load_fold(folder)
        except CorruptFileError as error:
            self.say(f"{error} It is trained again.")
            return None
        return model if model.info.get("run_identity") == self.plan.identity else None

    def _groups(self, todo: Sequence[int]) -> list[list[int]]:
        """Folds that are trained together: as many as their states fit into memory."""
        if not todo:
            return []
        model = self._new_model(self.plan.settings, 0)
        size = 16 * max(1, sum(p.numel() for p in model.parameters()))
        runs = self._inner_count(self.plan.folds[0]) * len(self.plan.settings.points)
        together = max(1, int(_STATE_BYTES // max(1, size * runs)))
        if self.bank.tier != "mapped":
            # Nothing is read twice from memory: fewer at a time costs nothing and saves earlier.
            together = min(together, 5)
        return [list(todo[i : i + together]) for i in range(0, len(todo), together)]

    def _inner_count(self, fold: Fold) -> int:
        if fold.val:
            return 1
        return self.plan.settings.inner or (5 if len(fold.train) < _SMALL_COHORT else 1)

    def _new_model(self, settings: TrainSettings, seed: int) -> Any:
        outside = torch.get_rng_state()
        torch.manual_seed(seed)
        model = create_aggregator(
            settings.aggregator,
            in_dim=int(self.plan.features["dim"]),
            n_classes=sum(t.width for t in self.plan.cohort.targets),
            **settings.aggregator_settings,
        )
        torch.set_rng_state(outside)
        return model

    def _criteria(self, patients: Sequence[str], y: NDArray[np.float64]) -> tuple[Criterion, ...]:
        rows = np.array([self.place[p] for p in patients])
        out, start = [], 0
        for t, target in enumerate(self.plan.cohort.targets):
            out.append(fit_criterion(target, start, y[rows, t], self.plan.settings.class_weights))
            start += target.width
        return tuple(out)

    def _runs(self, k: int, y: NDArray[np.float64]) -> list[Run]:
        """All models that fold k asks for: inner splits times grid points."""
        fold, settings = self.plan.folds[k], self.plan.settings
        rows = np.array([self.place[p] for p in fold.train])
        layer = strata(y[rows, 0], self.plan.cohort.targets[0])
        sites = self.plan.cohort.patient_sites() if self.plan.keep_sites_apart else None
        if fold.val:
            splits = [(fold.train, fold.val)]
        else:
            splits = inner_splits(
                fold.train,
                layer,
                count=self._inner_count(fold),
                seed=settings.seed + 1000 * fold.repeat + fold.fold,
                groups=None if sites is None else [sites[i] for i in rows],
                survival=self.plan.cohort.targets[0].task == "survival",
            )
        # Class weights, scale and time bins of the whole training part: members of one fold share
        # their units, and nothing of the test part is in them.
        criteria = self._criteria([*fold.train, *fold.val], y)
        out = []
        for i, (train, val) in enumerate(splits):
            own = self.bags_of(train)
            visible = np.full((len(self.bags.members), *y.shape[1:]), np.nan, dtype=np.float32)
            seen = np.concatenate([own, self.bags_of(val)])
            visible[seen] = y[[self.place[self.owners[b]] for b in seen]]
            points = [settings.with_values(p) for p in settings.points]
            moments = None
            if any(p.standardize for p in points):
                moments = self.bank.moments(s for b in own for s in self.bags.members[b])
            for g, chosen in enumerate(points):
                norm = moments if chosen.standardize else None
                seed = settings.seed + 7919 * fold.repeat + 101 * fold.fold + i
                model = self._new_model(chosen, seed)
                if hasattr(model, "fit_prototypes"):
                    model.fit_prototypes(self._some_tiles(own, norm, seed), seed)
                run = Run(
                    key=f"{k}/{g}/{i}",
                    model=model,
                    criteria=criteria,
                    train=own,
                    val=self.bags_of(val),
                    y=torch.from_numpy(visible),
                    settings=chosen,
                    seed=seed,
                    norm=norm,
                )
                run.prepare(self.device)
                self._fit_closed(run)
                out.append(run)
        return out

    def _fit_closed(self, run: Run) -> None:
        """Models on one vector a bag are fitted here and now; they take no epochs."""
        y = run.y[torch.as_tensor(run.train), 0]
        known = ~torch.isnan(y[:, 0])
        own = run.train[known.numpy()]
        if type(run.model).fit_vectors is Aggregator.fit_vectors:
            return
        vectors = torch.stack(
            [run.normalise(self.bags.get(int(b)).to(self.device).float()).mean(dim=0) for b in own]
        )
        if run.model.fit_vectors(vectors.cpu(), y[known], run.criteria[0], run.seed):
            run.done = True
            z = predict_logits([run], self.bags, run.val.tolist(), device=self.device)[0]
            loss = run.criteria[0](torch.from_numpy(z), run.y[torch.as_tensor(run.val), 0])
            run.best_loss = 0.0 if loss is None else float(loss)
            run.best_epoch = 0
            run.log.append({"train_loss": math.nan, "val_loss": run.best_loss})

    def _some_tiles(self, own: NDArray[np.int64], norm: Any, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        share = max(1, 20000 // max(1, len(own)))
        tiles = torch.cat([self.bags.draw(int(b), share, rng).float().cpu() for b in own])
        return tiles if norm is None else standardised(tiles, (norm[0].cpu(), norm[1].cpu()))

    def _train_group(
        self, group: Sequence[int], y: NDArray[np.float64], *, save: bool = True
    ) -> tuple[dict[int, FoldModel], list[tuple[str, str]]]:
        """Models of the folds of a group, and the folds that failed with the reason."""
        runs = [r for k in group for r in self._runs(k, y)]
        state = self.out / "cache" / f"progress-{group[0]}-{group[-1]}.pt"
        used = self._resume(runs, state) if save else state
        saved = time.monotonic()

        def on_epoch(epoch: int, all_runs: Sequence[Run]) -> None:
            nonlocal saved
            active = [r for r in all_runs if not r.done]
            mean = np.mean([r.log[-1]["val_loss"] for r in all_runs])
            self.say(
                f"folds {group[0]}-{group[-1]}, epoch {epoch + 1}: inner validation loss "
                f"{mean:.4f}, {len(active)} of {len(all_runs)} models go on"
            )
            if save and time.monotonic() - saved > _SAVE_EVERY_S:
                self._save_progress(all_runs, state)
                saved = time.monotonic()

        fit_runs(
            runs,
            self.bags,
            device=self.device,
            precision=self.precision,
            order_seed=self.plan.settings.seed,
            on_epoch=on_epoch,
        )
        out, failed = {}, []
        for k in group:
            own = [r for r in runs if r.key.startswith(f"{k}/")]
            try:
                out[k] = self._choose(k, own)
            except FloatingPointError as error:
                failed.append((f"fold-{k}", str(error)))
                continue
            if save:
                save_fold(self.folder(self.plan.folds[k]), out[k])
        for path in {state, used}:
            path.unlink(missing_ok=True)
        return out, failed

    def _resume(self, runs: Sequence[Run], path: Path) -> Path:
        """Go on from the state of these runs, or of more: some of its folds may be whole by now.

        Returns:
            The file it came from; `path` where there is none.
        """
        keys = {r.key for r in runs}
        for known in [path] if path.is_file() else sorted(path.parent.glob("progress-*.pt")):
            try:
                state = torch.load(known, map_location=self.device, weights_only=True)
            except FileNotFoundError:
                continue  # another process has finished with it
            if state["identity"] != self.plan.identity or not keys <= set(state["runs"]):
                continue
            for run in runs:
                run.restore(state["runs"][run.key])
                run.rng = state["runs"][run.key]["rng"].cpu()
            self.say(f"Going on after epoch {min(r.epoch for r in runs)}.")
            return known
        return path

    def _save_progress(self, runs: Sequence[Run], path: Path) -> None:
        import io

        from wsipipe.store.publish import make_folder, publish_bytes

        buffer = io.BytesIO()
        torch.save(
            {"identity": self.plan.identity, "runs": {r.key: r.state() for r in runs}}, buffer
        )
        make_folder(path.parent)
        publish_bytes(path, buffer.getvalue())

    def _choose(self, k: int, runs: Sequence[Run]) -> FoldModel:
        """The grid point with the lowest inner validation loss; calibration on the same bags."""
        points = self.plan.settings.points
        losses = []
        for g in range(len(points)):
            mine = [r.best_loss for r in runs if r.key.split("/")[1] == str(g)]
            losses.append(float(np.mean(mine)))
        best = int(np.argmin(losses))
        members = [r for r in runs if r.key.split("/")[1] == str(best)]
        if any(not math.isfinite(r.best_loss) for r in members):
            raise FloatingPointError("The loss is not a number; try --standardize or a lower --lr.")
        logits, y, owners = [], [], []
        for run in members:
            z = predict_logits(
                [run], self.bags, run.val.tolist(), device=self.device, precision="fp32"
            )
            logits.append(z[0])
            y.append(run.y[torch.as_tensor(run.val)].double().numpy())
            owners.append([self.place[self.owners[b]] for b in run.val])
        z_val, y_val, owner = np.concatenate(logits), np.concatenate(y), np.concatenate(owners)
        calibration = [
            fit_calibration(c, z_val, y_val[:, t], owner) for t, c in enumerate(members[0].criteria)
        ]
        info = self._info(k, members, calibration, losses)
        return FoldModel(info, [r.model.float().eval() for r in members], [r.norm for r in members])

    def _info(
        self,
        k: int,
        members: Sequence[Run],
        calibration: list[dict[str, Any]],
        losses: Sequence[float],
    ) -> dict[str, Any]:
        plan, fold = self.plan, self.plan.folds[k]
        chosen = members[0].settings
        return {
            "format": FORMAT,
            "version": VERSION,
            "wsipipe_version": __version__,
            "run_identity": plan.identity,
            "aggregator": chosen.aggregator,
            "aggregator_settings": chosen.aggregator_settings,
            "order_matters": type(members[0].model).order_matters,
            "in_dim": int(plan.features["dim"]),
            "n_outputs": sum(t.width for t in plan.cohort.targets),
            "members": len(members),
            "targets": [c.describe() for c in members[0].criteria],
            "calibration": calibration,
            "features": plan.features,
            "standardize": chosen.standardize,
            "precision": self.precision,
            "splits_sha256": splits_digest(plan.folds),
            "slides_together": plan.slides_together,
            "repeat": fold.repeat,
            "fold": fold.fold,
            "settings": chosen.describe(),
            "grid_losses": [_finite(v) for v in losses],
            "best_epochs": [r.best_epoch + 1 for r in members],
            "log": [[{k: _finite(v) for k, v in e.items()} for e in r.log] for r in members],
            "test_digests": sorted(
                name_digest(s)
                for s, p in zip(plan.cohort.slide_ids, plan.cohort.patients, strict=True)
                if p in set(fold.test)
            ),
            "cohort_digests": sorted(
                name_digest(n) for n in {*plan.cohort.patients, *plan.cohort.slide_ids}
            ),
        }
