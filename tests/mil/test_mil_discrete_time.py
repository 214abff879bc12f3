"""The discrete-time likelihood: base hazards, and risks that come out the right way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsipipe.mil.bags import find_bags
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.calibration import fit_calibration, raw_risk, target_outputs
from wsipipe.mil.cohort import read_table
from wsipipe.mil.fitting import fit_runs, predict_logits
from wsipipe.mil.losses import fit_criterion
from wsipipe.mil.metrics.survival import concordance_statistic
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.runs import BagSet, Run
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.targets import Target

NLL = Target("t", "survival", ("months", "died"), loss="nll")
CPU = torch.device("cpu")


def test_base_hazards_are_kaplan_meiers():
    from lifelines import KaplanMeierFitter

    rng = np.random.default_rng(0)
    y = np.stack([rng.exponential(20, 4000), rng.random(4000) < 0.6], axis=1).astype(float)
    criterion = fit_criterion(NLL, 0, y, "balanced")
    bins = np.searchsorted(criterion.edges, y[:, 0], side="right")
    curve = KaplanMeierFitter().fit(bins, y[:, 1]).survival_function_at_times(range(4))
    survived = np.cumprod(1 - 1 / (1 + np.exp(-criterion.base)))
    np.testing.assert_allclose(survived, curve, atol=2e-3)
    # So that a model which knows nothing starts at the best that can be said of everybody.
    z = torch.zeros((4000, 4), requires_grad=True)
    criterion(z, torch.from_numpy(y).float()).backward()
    assert z.grad.sum(dim=0).abs().max() < 1e-3


def test_bins_without_events_or_without_survivors_stay_finite():
    y = np.array([[1.0, 1], [1.0, 1], [1.0, 1], [9.0, 1]])
    criterion = fit_criterion(NLL, 0, y, "balanced")
    assert np.isfinite(criterion.base).all()
    assert torch.isfinite(criterion(torch.zeros(4, 4), torch.from_numpy(y).float()))


def test_users_see_the_risk_that_was_trained():
    y = np.array([[1.0, 1], [2.0, 1], [3.0, 0], [4.0, 1], [9.0, 1]])
    criterion = fit_criterion(NLL, 0, y, "balanced")
    z = np.random.default_rng(0).normal(size=(5, 4))
    seen = target_outputs(criterion.describe(), fit_calibration(criterion, z, y), z[None])[:, 0]
    raw = raw_risk("nll", z, criterion.base)
    np.testing.assert_allclose(seen, (raw - raw.mean()) / raw.std(), atol=1e-12)


def test_attention_does_not_learn_risks_in_reverse(cohort):
    """Bags of strong features used to follow the mean hazard furthest, and came out as safe."""
    files = find_bags(cohort / "features")
    rows = {r["slide_id"]: r for r in read_table(cohort / "labels.csv")}
    y = np.array([[float(rows[s]["months"]), float(rows[s]["died"])] for s in files])
    bags = BagSet(FeatureBank(files), tuple((s,) for s in files))
    c = []
    for seed in range(3):
        torch.manual_seed(seed)
        run = Run(
            "r", create_aggregator("abmil", in_dim=8, n_classes=4, hidden=64, attention_dim=32),
            (fit_criterion(NLL, 0, y, "balanced"),), np.arange(40), np.arange(0),
            torch.from_numpy(y[:, None].astype(np.float32)),
            TrainSettings(epochs=10, batch_bags=2), seed,
        )  # fmt: skip
        run.prepare(CPU)
        fit_runs([run], bags, device=CPU)
        z = predict_logits([run], bags, range(40), device=CPU)[0]
        risk = raw_risk("nll", z, run.criteria[0].base)
        c.append(concordance_statistic(risk, y[:, 0], y[:, 1])(np.ones((1, 40)))[0])
    assert np.mean(c) == pytest.approx(0.7, abs=0.15)


def test_a_tile_contributes_to_the_risk_over_all_bins():
    from wsipipe.mil.contributions import contributions
    from wsipipe.mil.ensemble import FoldModel

    torch.manual_seed(0)
    model = create_aggregator("mean", in_dim=4, n_classes=4, hidden=0).eval()
    with torch.no_grad():
        model.head.weight[0] = 0  # nothing speaks for an early death, all for a later one
    y = np.array([[1.0, 1], [2.0, 1], [3.0, 0], [4.0, 1], [9.0, 1]])
    criterion = fit_criterion(NLL, 0, y, "balanced")
    fold = FoldModel({"targets": [criterion.describe()]}, [model], [None])
    bag = torch.randn(6, 4)
    found = contributions(fold, bag)
    z = model.forward_bags([bag]).instance_logits.detach().double().numpy()
    np.testing.assert_allclose(found, raw_risk("nll", z, criterion.base), atol=1e-5)
    assert np.ptp(found) > 0.01


def test_a_time_at_an_edge_lies_in_the_bin_that_begins_there():
    times = np.array([0.1, 12.7, 20.1, 33.3, 41.7])
    criterion = fit_criterion(NLL, 0, np.stack([times, np.ones(5)], axis=1), "balanced")
    assert criterion.edges.tolist() == [12.7, 20.1, 33.3]
    z = torch.zeros(3, 4)
    z[:, 0] = -30  # nobody dies in the first bin
    y = torch.tensor([[12.7, 1], [20.1, 1], [33.3, 1]])
    assert criterion(z, y) < 5
