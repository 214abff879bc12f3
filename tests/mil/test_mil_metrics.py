"""Figures equal those of scikit-learn, lifelines and scikit-survival; intervals behave."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from wsipipe.mil.calibration import choose_thresholds, fit_calibration, softmax
from wsipipe.mil.losses import fit_criterion
from wsipipe.mil.metrics.bootstrap import bca_interval, draw_weights, holm, paired_bootstrap
from wsipipe.mil.metrics.classification import (
    auprc,
    auroc,
    brier,
    confusion,
    expected_calibration_error,
    from_confusion,
)
from wsipipe.mil.metrics.delong import delong_interval, delong_test
from wsipipe.mil.metrics.regression import regression_statistics
from wsipipe.mil.metrics.survival import (
    breslow_survival,
    concordance_statistic,
    discrete_survival,
    integrated_brier,
    ipcw_concordance,
    kaplan_meier,
    log_rank,
)
from wsipipe.mil.targets import Target


def _data(n=60, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    score = np.round(rng.normal(size=n) + y, 1)  # rounding makes ties
    return score, y


def _drawn(n, seed=1):
    """A bootstrap draw as weights and as repeated rows."""
    weights = draw_weights(n, 1, seed)
    return weights, np.repeat(np.arange(n), weights[0].astype(int))


def test_binary_figures_equal_scikit_learn_with_and_without_weights():
    score, y = _data()
    for weights, rows in ((np.ones((1, 60)), np.arange(60)), _drawn(60)):
        s, t = score[rows], y[rows]
        assert auroc(score, y == 1, weights)[0] == pytest.approx(sk.roc_auc_score(t, s))
        assert auprc(score, y == 1, weights)[0] == pytest.approx(sk.average_precision_score(t, s))
        said = (score > 0.5).astype(int)
        got = from_confusion(confusion(y, said, 2, weights))
        d = said[rows]
        assert got["accuracy"][0] == pytest.approx(sk.accuracy_score(t, d))
        assert got["balanced_accuracy"][0] == pytest.approx(sk.balanced_accuracy_score(t, d))
        assert got["f1"][0] == pytest.approx(sk.f1_score(t, d))
        assert got["mcc"][0] == pytest.approx(sk.matthews_corrcoef(t, d))
        assert got["kappa"][0] == pytest.approx(sk.cohen_kappa_score(t, d))
        assert got["sensitivity"][0] == pytest.approx(sk.recall_score(t, d))
        p = 1 / (1 + np.exp(-score))
        both = np.stack([1 - p, p], axis=1)
        assert brier(both, y, weights)[0] == pytest.approx(sk.brier_score_loss(t, p[rows]))


def test_multi_class_figures_equal_scikit_learn():
    rng = np.random.default_rng(2)
    y, said = rng.integers(0, 4, 80), rng.integers(0, 4, 80)
    got = from_confusion(confusion(y, said, 4, np.ones((1, 80))))
    assert got["balanced_accuracy"][0] == pytest.approx(sk.balanced_accuracy_score(y, said))
    assert got["f1"][0] == pytest.approx(sk.f1_score(y, said, average="macro"))
    assert got["mcc"][0] == pytest.approx(sk.matthews_corrcoef(y, said))
    assert got["kappa"][0] == pytest.approx(sk.cohen_kappa_score(y, said))


def test_calibration_error_by_hand():
    p = np.array([[0.05, 0.95], [0.05, 0.95], [0.35, 0.65], [0.35, 0.65]])
    truth = np.array([1, 0, 1, 1])
    # bin of .95: right 1 of 2 -> gap .45; bin of .65: right 2 of 2 -> gap .35; mean .4
    value = expected_calibration_error(p, truth, np.ones((1, 4)))[0]
    assert value == pytest.approx(0.4)


def test_regression_figures_equal_scikit_learn_and_scipy():
    rng = np.random.default_rng(3)
    truth = np.round(rng.normal(size=50), 1)
    said = truth + rng.normal(size=50)
    for weights, rows in ((np.ones((1, 50)), np.arange(50)), _drawn(50)):
        got = regression_statistics(said, truth, weights)
        t, s = truth[rows], said[rows]
        assert got["mae"][0] == pytest.approx(sk.mean_absolute_error(t, s))
        assert got["r2"][0] == pytest.approx(sk.r2_score(t, s))
        assert got["pearson"][0] == pytest.approx(stats.pearsonr(t, s)[0])
        assert got["spearman"][0] == pytest.approx(stats.spearmanr(t, s)[0])


def _survival(n=80, seed=4):
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    time = np.round(rng.exponential(np.exp(-risk)) * 10, 1) + 0.1
    return risk, time, (rng.random(n) < 0.6).astype(float)


def test_survival_figures_equal_lifelines_and_scikit_survival():
    from lifelines import KaplanMeierFitter
    from lifelines.statistics import logrank_test
    from lifelines.utils import concordance_index
    from sksurv.metrics import concordance_index_censored, concordance_index_ipcw
    from sksurv.util import Surv

    risk, time, event = _survival()
    ours = concordance_statistic(risk, time, event)(np.ones((1, 80)))[0]
    assert ours == pytest.approx(concordance_index_censored(event == 1, time, risk)[0])
    assert ours == pytest.approx(concordance_index(time, -risk, event), abs=2e-3)
    train = _survival(200, 5)
    wanted = concordance_index_ipcw(
        Surv.from_arrays(train[2] == 1, train[1]),
        Surv.from_arrays(event == 1, time),
        risk,
        tau=train[1].max(),
    )[0]
    assert ipcw_concordance(train[1], train[2], time, event, risk) == pytest.approx(wanted)
    t, alive, low, high = kaplan_meier(time, event)
    fit = KaplanMeierFitter().fit(time, event)
    np.testing.assert_allclose(alive, fit.predict(t).to_numpy())
    assert (low <= alive + 1e-9).all()
    assert (alive <= high + 1e-9).all()
    group = risk > 0
    p = logrank_test(time[group], time[~group], event[group], event[~group]).p_value
    assert log_rank(time, event, group) == pytest.approx(p)
    assert np.isnan(log_rank(time, event, np.ones(80, bool)))


def test_concordance_with_weights_equals_repeated_patients():
    from sksurv.metrics import concordance_index_censored

    risk, time, event = _survival()
    weights, rows = _drawn(80)
    # Copies of one patient have equal times: pairs of copies count where sksurv counts them not.
    ours = concordance_statistic(risk, time, event)(weights)[0]
    wanted = concordance_index_censored(event[rows] == 1, time[rows], risk[rows])[0]
    assert ours == pytest.approx(wanted, abs=0.01)


def test_breslow_and_integrated_brier_tell_a_good_model_from_a_bad_one():
    risk, time, event = _survival(300, 6)
    at = np.quantile(time[event == 1], np.linspace(0.1, 0.8, 10))
    args = (time, event, time, event)
    good = integrated_brier(*args, breslow_survival(time, event, risk, risk, at), at)
    bad = integrated_brier(*args, breslow_survival(time, event, -risk, -risk, at), at)
    null = integrated_brier(*args, breslow_survival(time, event, 0 * risk, 0 * risk, at), at)
    assert good < null < bad


def test_discrete_hazards_of_an_exponential_law_give_its_curve():
    """With a constant hazard the chance to live through a bin is exp(-rate * width)."""
    rate, edges, last = 0.3, np.array([1.0, 2.5, 3.0]), 7.0
    widths = np.diff([0.0, *edges, last])
    at = np.array([0.0, 0.5, 1.0, 2.5, 3.0, 7.0, 9.0])
    curve = discrete_survival(1 - np.exp(-rate * widths)[None], edges, last, at)[0]
    wanted = np.exp(-rate * np.minimum(at, last))
    assert curve[[0, 2, 3, 4, 5, 6]] == pytest.approx(wanted[[0, 2, 3, 4, 5, 6]], abs=1e-12)
    assert curve[1] == pytest.approx((1 + np.exp(-rate)) / 2, abs=1e-12), "even within a bin"


def test_c_index_reproduces_published_folds(mil_data):
    """MCAT's risks for TCGA against its C-indices, computed by scikit-survival."""
    import csv
    import gzip

    folder = mil_data / "tcga_survival_preds"
    with gzip.open(folder / "mcat_iccv21_predictions.csv.gz", "rt") as f:
        rows = list(csv.DictReader(f))
    with (folder / "cindex_per_fold.csv").open() as f:
        table = list(csv.DictReader(f))
    checked = 0
    for line in table[:: max(1, len(table) // 40)]:
        own = [r for r in rows if all(r[k] == line[k] for k in ("model", "cancer", "fold"))]
        risk, time = (np.array([float(r[k]) for r in own]) for k in ("risk", "survival_months"))
        event = 1 - np.array([float(r["censorship"]) for r in own])
        value = concordance_statistic(risk, time, event)(np.ones((1, len(own))))[0]
        assert value == pytest.approx(float(line["c"]), abs=1e-4)
        checked += 1
    assert checked >= 30


def test_delong_agrees_with_a_bootstrap_of_ten_thousand():
    score, y = _data(300, 7)
    auc, low, high = delong_interval(score, y == 1)
    assert auc == pytest.approx(sk.roc_auc_score(y, score))
    drawn = auroc(score, y == 1, draw_weights(300, 10000, 0, y))
    b_low, b_high = np.quantile(drawn, [0.025, 0.975])
    assert low == pytest.approx(b_low, abs=0.005)
    assert high == pytest.approx(b_high, abs=0.005)


def test_delong_test_of_paired_scores():
    score, y = _data(200, 8)
    noise = score + np.random.default_rng(0).normal(0, 2, 200)
    difference, p = delong_test(score, noise, y == 1)
    assert difference > 0
    assert p < 0.05
    assert delong_test(score, score, y == 1) == (0.0, 1.0)


def test_bca_interval_covers_as_it_should():
    """Of 200 intervals for a mean of skewed data, about 95 % hold the truth."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        x = rng.exponential(size=40)
        found = bca_interval(lambda w, x=x: w @ x / w.sum(axis=1), 40, draws=400, seed=i)
        hits += found.low <= 1 <= found.high
    assert 0.88 <= hits / 200 <= 0.98


def test_bca_equals_scipys():
    x = np.random.default_rng(1).exponential(size=60)
    ours = bca_interval(lambda w: w @ x / w.sum(axis=1), 60, draws=20000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=0)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_a_perfect_score_has_a_width_of_zero_and_one_class_none():
    score = np.arange(20.0)
    perfect = bca_interval(lambda w: auroc(score, score >= 10, w), 20, draws=200)
    assert (perfect.low, perfect.high) == (1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = bca_interval(lambda w: auroc(score, score >= 0, w), 20, draws=200)
    assert np.isnan(none.low)


def test_holm_by_hand_and_paired_bootstrap():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    score, y = _data(150, 9)
    worse = score + np.random.default_rng(1).normal(0, 3, 150)
    value, low, high, p = paired_bootstrap(
        lambda w: auroc(score, y == 1, w), lambda w: auroc(worse, y == 1, w), 150, layer=y
    )
    assert low < value < high
    assert p < 0.05


def test_who_outlives_the_training_part_is_still_compared():
    from lifelines import KaplanMeierFitter

    train, (risk, time, event) = _survival(200, 5), _survival(80, 6)
    train = [x[train[1] < 20] for x in train]
    # No ties: deaths and censorings at one time are ordered differently by different tools.
    train[1] = train[1] + np.arange(len(train[1])) * 1e-5
    time = time + 0.03
    assert (time >= train[1].max()).sum() > 3
    censoring = KaplanMeierFitter().fit(train[1], 1 - train[2])
    won = pairs = 0.0
    for i in np.flatnonzero((event == 1) & (time < train[1].max())):
        weight = float(censoring.predict(time[i])) ** -2
        later = (time > time[i]) | ((time == time[i]) & (event == 0))
        pairs += weight * later.sum()
        won += weight * ((risk[i] > risk[later]) + 0.5 * (risk[i] == risk[later])).sum()
    found = ipcw_concordance(train[1], train[2], time, event, risk)
    assert found == pytest.approx(won / pairs, rel=1e-6)


def test_a_long_follow_up_does_not_undo_the_brier_score():
    train, (risk, time, event) = _survival(200, 5), _survival(80, 6)
    train = (train[0], train[1], np.where(train[1] == train[1].max(), 1, train[2]))
    at = np.quantile(time[event == 1], [0.2, 0.4, 0.6])
    curves = breslow_survival(train[1], train[2], train[0], risk, at)
    wanted = integrated_brier(train[1], train[2], time, event, curves, at)
    longer = np.where(time == time.max(), train[1].max() + 5, time)
    found = integrated_brier(train[1], train[2], longer, event, curves, at)
    assert np.isfinite(wanted)
    assert found == pytest.approx(wanted)


def test_large_numbers_that_differ_little_are_told_apart():
    rng = np.random.default_rng(0)
    truth = 1e9 + rng.normal(size=50)
    said = truth + rng.normal(size=50)
    found = regression_statistics(said, truth, np.ones((1, 50)))
    assert found["r2"][0] == pytest.approx(sk.r2_score(truth, said), abs=1e-6)
    assert found["pearson"][0] == pytest.approx(stats.pearsonr(truth, said)[0], abs=1e-6)


def test_youdens_cut_is_one_of_the_best_and_not_between_them():
    p = np.array([0.1, 0.5, 0.3, 0.7])
    truth = np.array([0, 0, 1, 1])
    cut = choose_thresholds(p, truth)["youden"]
    assert (p[truth == 1] >= cut).mean() + (p[truth == 0] < cut).mean() == 1.5


def test_thresholds_are_for_patients_not_for_slides():
    target = Target("label", "classification", ("label",), ("0", "1"))
    criterion = fit_criterion(target, 0, np.array([[0.0, 0], [1, 0]]), "none")
    score = np.array([-2.0, -1, 3, 0, 0.5, 1])
    owners = np.array([0, 1, 1, 2, 3, 3])
    y = np.stack([np.isin(owners, (1, 3)), np.zeros(6)], axis=1).astype(float)
    logits = np.stack([-score, score], axis=1)
    found = fit_calibration(criterion, logits, y, owners)
    p = softmax(logits / found["temperature"])[:, 1]
    mean = np.array([p[owners == k].mean() for k in range(4)])
    assert found["thresholds"] == choose_thresholds(mean, np.array([0, 1, 0, 1]))
    assert found["thresholds"] != choose_thresholds(p, y[:, 0].astype(int))


def test_equal_scores_are_one_point_of_the_precision_curve():
    from wsipipe.report.mil_page import _precision

    score, positive = np.array([1.0, 1, 1, 0]), np.array([True, False, False, True])
    for order in ([0, 1, 2, 3], [1, 2, 0, 3]):
        recall, precision = _precision(score[order], positive[order])
        assert recall.tolist() == [0, 0.5, 1]
        np.testing.assert_allclose(precision, [1 / 3, 1 / 3, 0.5])
