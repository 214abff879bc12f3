"""The Cox loss: Efron's ties, and risk sets that are the whole training part whatever a step is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsipipe.mil.bags import find_bags
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.cohort import read_table
from wsipipe.mil.fitting import fit_runs
from wsipipe.mil.losses import cox_loss, cox_loss_among, fit_criterion
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.runs import BagSet, Run
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.targets import Target

COX = Target("t", "survival", ("months", "died"), loss="cox")
CPU = torch.device("cpu")


def _patients(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariates, times with many ties, events."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    time = np.ceil(rng.exponential(8 * np.exp(-0.7 * x[:, 0])))
    return x, time, (rng.random(n) < 0.7).astype(float)


def test_the_loss_is_lifelines_likelihood_with_efrons_ties():
    import pandas as pd
    from lifelines import CoxPHFitter

    x, time, event = _patients()
    assert len(np.unique(time)) < 30
    table = pd.DataFrame({**{f"x{i}": x[:, i] for i in range(3)}, "t": time, "e": event})
    fit = CoxPHFitter().fit(table, "t", "e")
    beta = torch.tensor(fit.params_.to_numpy(), dtype=torch.float32, requires_grad=True)
    loss = cox_loss(torch.from_numpy(x).float() @ beta, *map(torch.from_numpy, (time, event)))
    assert loss.item() * event.sum() == pytest.approx(-fit.log_likelihood_, rel=1e-5)
    loss.backward()
    assert beta.grad.abs().max() < 1e-4  # at the maximum of the likelihood


def test_hazards_far_apart_are_neither_infinite_nor_lost():
    risk = torch.tensor([300.0, 0.0, -300.0], requires_grad=True)
    # The likeliest is censored first; then the least likely of two dies before the other.
    loss = cox_loss(risk, torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.0, 1.0, 1.0]))
    assert loss.item() == pytest.approx(150)
    loss.backward()
    assert risk.grad.tolist() == pytest.approx([0, 0.5, -0.5])


@pytest.mark.parametrize("steps", [[60], [20, 20, 20], [7, 1, 30, 22]])
def test_steps_add_up_to_the_gradient_of_the_full_cohort(steps):
    x, time, event = _patients()
    x, y = torch.from_numpy(x).float(), torch.from_numpy(np.stack([time, event], 1)).float()
    beta = torch.tensor([0.5, -1.0, 0.2], requires_grad=True)
    (whole,) = torch.autograd.grad(cox_loss(x @ beta, y[:, 0], y[:, 1]), beta)
    hazards, total = (x @ beta).detach(), torch.zeros(3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for own in order.split(steps):
        rest = torch.ones(60, dtype=torch.bool)
        rest[own] = False
        loss = cox_loss_among(x[own] @ beta, y[own], hazards[rest], y[rest])
        assert loss.item() == pytest.approx(cox_loss(hazards, y[:, 0], y[:, 1]).item(), rel=1e-5)
        total += torch.autograd.grad(loss, beta)[0] * len(own) / 60
    torch.testing.assert_close(total, whole, atol=1e-6, rtol=0)


def _run(y: np.ndarray, name: str = "mean", **settings) -> Run:
    torch.manual_seed(0)
    own = {"hidden": 16, "attention_dim": 8} if name == "abmil" else {}
    model = create_aggregator(name, in_dim=8, n_classes=1, dropout=0.0, **own)
    run = Run(
        "r", model, (fit_criterion(COX, 0, y[:, 0].astype(float), "balanced"),),
        np.arange(32), np.arange(32, 40), torch.from_numpy(y), TrainSettings(**settings), 0,
    )  # fmt: skip
    run.prepare(CPU)
    return run


def _cohort(folder) -> tuple[BagSet, np.ndarray]:
    files = find_bags(folder / "features")
    rows = {r["slide_id"]: r for r in read_table(folder / "labels.csv")}
    y = np.array([[[float(rows[s]["months"]), float(rows[s]["died"])]] for s in files])
    return BagSet(FeatureBank(files), tuple((s,) for s in files)), y.astype(np.float32)


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_an_epoch_of_any_batch_size_follows_the_full_gradient(cohort, batch, monkeypatch):
    """With weights held still, what the trainer accumulates is the full cohort's gradient."""
    bags, y = _cohort(cohort)
    run = _run(y, epochs=1, batch_bags=batch)
    weights = list(run.model.parameters())
    total = [torch.zeros_like(p) for p in weights]

    def collect() -> None:
        for sum_, p in zip(total, weights, strict=True):
            sum_ += p.grad * batch / 32

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    monkeypatch.setattr(run.optimizer, "step", collect)
    monkeypatch.setattr(run.scheduler, "step", lambda: None)
    fit_runs([run], bags, device=CPU)
    z = run.model.train().forward_bags([bags.get(i).float() for i in range(32)]).logits[:, 0]
    labels = torch.from_numpy(y[:32, 0])
    whole = torch.autograd.grad(cox_loss(z, labels[:, 0], labels[:, 1]), weights)
    for found, wanted in zip(total, whole, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_step_of_one_bag_teaches(cohort):
    """Among itself one bag is no risk set, and the loss of the step would be 0."""
    bags, y = _cohort(cohort)
    run = _run(y, epochs=15, batch_bags=1, lr=1e-2, patience=100)
    fit_runs([run], bags, device=CPU)
    assert run.log[-1]["train_loss"] < run.log[0]["train_loss"] - 0.1


def test_a_resumed_run_has_its_risk_sets_again(cohort):
    bags, y = _cohort(cohort)
    whole, first, second = (_run(y, "abmil", epochs=4, batch_bags=4, lr=1e-2) for _ in range(3))
    fit_runs([whole], bags, device=CPU)

    class Killed(BaseException):
        pass

    def kill(epoch: int, _runs: object) -> None:
        if epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        fit_runs([first], bags, device=CPU, on_epoch=kill)
    second.restore(first.state())
    fit_runs([second], bags, device=CPU)
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_survival_curves_take_the_log_hazards_of_the_model(cohort, monkeypatch):
    from wsipipe.mil.crossval import train
    from wsipipe.mil.ensemble import load_fold
    from wsipipe.mil.metrics import survival

    given, breslow = [], survival.breslow_survival

    def spy(time, event, train_risk, risk, at):
        given.append(train_risk)
        return breslow(time, event, train_risk, risk, at)

    monkeypatch.setattr(survival, "breslow_survival", spy)
    train(
        cohort / "features", cohort / "labels.csv", time="months", event="died", folds=2,
        out=cohort / "out", settings=TrainSettings(aggregator_settings={"hidden": 8}, epochs=1),
    )  # fmt: skip
    fold = load_fold(cohort / "out" / "models" / "fold-0")
    files = find_bags(cohort / "features")
    logits = [fold.forward_bag(FeatureBank(files).get(s))[0].mean() for s in files]
    # One epoch at a small rate: nobody's hazard is far from anybody's.
    assert np.ptp(logits) < 1
    assert np.ptp(given[0]) <= np.ptp(logits) + 1e-6
