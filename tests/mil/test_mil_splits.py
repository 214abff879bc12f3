"""A patient, and a site where asked, is never on both sides; given splits are read both ways."""

from __future__ import annotations

import csv
import gzip
import time

import numpy as np
import pytest

from wsipipe.errors import ConfigError
from wsipipe.mil.sites import site_preserved_folds
from wsipipe.mil.split_files import read_splits, write_splits
from wsipipe.mil.splits import (
    Fold,
    check_folds,
    inner_splits,
    make_folds,
    separate_draws,
    splits_digest,
    strata,
)
from wsipipe.mil.targets import Target

LABEL = Target("label", "classification", ("label",), ("a", "b"))
PATIENTS = tuple(f"p{i:02}" for i in range(40))
Y = np.stack([np.arange(40) % 4 == 0, np.zeros(40)], axis=1).astype(float)


def test_folds_are_stratified_and_test_everybody_once():
    folds = make_folds(PATIENTS, Y, LABEL, folds=5, repeats=2, seed=3)
    assert len(folds) == 10
    for repeat in (0, 1):
        own = [f for f in folds if f.repeat == repeat]
        assert sorted(p for f in own for p in f.test) == sorted(PATIENTS)
        for fold in own:
            assert not set(fold.train) & set(fold.test)
            positives = sum(Y[PATIENTS.index(p), 0] for p in fold.test)
            assert positives == 2
    first, second = ({f.test for f in folds if f.repeat == r} for r in (0, 1))
    assert first != second
    assert make_folds(PATIENTS, Y, LABEL, seed=3) == make_folds(PATIENTS, Y, LABEL, seed=3)


def test_monte_carlo_draws_are_repeats_of_their_own():
    folds = make_folds(PATIENTS, Y, LABEL, folds=4, monte_carlo=0.25)
    assert [f.repeat for f in folds] == [0, 1, 2, 3]
    assert all(len(f.test) == 10 for f in folds)


def test_too_few_of_a_class_is_said_before_training():
    y = Y.copy()
    y[:, 0] = 0
    y[:3, 0] = 1
    with pytest.raises(ConfigError, match=r"3 patient\(s\) of class 'b' for 5 folds"):
        make_folds(PATIENTS, y, LABEL)


def test_leaks_between_parts_are_errors():
    good = Fold(0, 0, PATIENTS[:30], PATIENTS[30:])
    assert check_folds([good], PATIENTS, Y, LABEL) == []
    torn = Fold(0, 0, PATIENTS[:31], PATIENTS[30:])
    with pytest.raises(ConfigError, match="'p30' is in train and test"):
        check_folds([torn], PATIENTS, Y, LABEL)
    sites = ["s1"] * 29 + ["s2"] * 11
    with pytest.raises(ConfigError, match="Site 's2' is in train and test"):
        check_folds([good], PATIENTS, Y, LABEL, sites)
    negatives = tuple(p for i, p in enumerate(PATIENTS) if i % 4)
    with pytest.raises(ConfigError, match=r"training part .* lacks 'b'"):
        check_folds([Fold(0, 0, negatives[:20], negatives[20:])], PATIENTS, Y, LABEL)
    notes = check_folds([Fold(0, 0, PATIENTS[:33], PATIENTS[33:36])], PATIENTS, Y, LABEL)
    assert "lacks 'b'" in notes[0]


def test_random_draws_that_overlap_become_repeats():
    draws = [Fold(0, 0, ("a", "b"), ("c", "d")), Fold(0, 1, ("a", "c"), ("b", "d"))]
    assert [(f.repeat, f.fold) for f in separate_draws(draws)] == [(0, 0), (1, 0)]
    folds = make_folds(PATIENTS, Y, LABEL)
    assert separate_draws(folds) == folds


def test_inner_splits_stay_inside_and_cover():
    layer = strata(Y, LABEL)
    one = inner_splits(PATIENTS, layer, count=1, seed=0)
    assert [len(v) for _, v in one] == [8]
    five = inner_splits(PATIENTS, layer, count=5, seed=0)
    assert sorted(p for _, v in five for p in v) == sorted(PATIENTS)
    groups = [f"s{i % 7}" for i in range(40)]
    at = dict(zip(PATIENTS, groups, strict=True))
    for train, val in inner_splits(PATIENTS, layer, count=3, seed=0, groups=groups):
        assert not {at[p] for p in train} & {at[p] for p in val}


def test_the_digest_says_who_is_where():
    a = [Fold(0, 0, ("x", "y"), ("z",)), Fold(0, 1, ("z", "y"), ("x",))]
    assert splits_digest(a) == splits_digest(a[::-1])
    assert splits_digest(a) != splits_digest([Fold(0, 0, ("x", "z"), ("y",)), a[1]])


@pytest.mark.parametrize("form", ["wsipipe", "clam", "patho-bench", "stamp"])
def test_splits_go_out_and_come_back(tmp_path, form):
    folds = make_folds(PATIENTS, Y, LABEL, folds=3)
    slides_of = {p: [f"{p}-{k}" for k in range(1 + i % 2)] for i, p in enumerate(PATIENTS)}
    patient_of = {s: p for p, ss in slides_of.items() for s in ss}
    suffix = {"wsipipe": "s.csv", "clam": "s", "patho-bench": "s.tsv", "stamp": "s.json"}[form]
    write_splits(tmp_path / suffix, folds, slides_of, form)
    back = read_splits(tmp_path / suffix, patient_of)
    assert splits_digest(back) == splits_digest(folds)


def test_clam_boolean_splits_and_the_short_form(tmp_path):
    (tmp_path / "splits_0_bool.csv").write_text(
        "slide_id,train,val,test\na,True,False,False\nb,False,True,False\nc,False,False,True\n"
    )
    patient_of = {"a": "A", "b": "B", "c": "C"}
    (fold,) = read_splits(tmp_path / "splits_0_bool.csv", patient_of)
    assert (fold.train, fold.val, fold.test) == (("A",), ("B",), ("C",))
    (tmp_path / "short.csv").write_text("slide_id,fold\na,0\nb,1\nc,1\n")
    folds = read_splits(tmp_path / "short.csv", patient_of)
    assert [(f.train, f.test) for f in folds] == [(("B", "C"), ("A",)), (("A",), ("B", "C"))]
    (tmp_path / "odd.csv").write_text("name,group\na,0\n")
    with pytest.raises(ConfigError, match="no known form"):
        read_splits(tmp_path / "odd.csv", patient_of)


def test_site_preserved_folds_report_what_a_large_site_does():
    sites = ["big"] * 60 + [f"s{i}" for i in range(40)]
    layer = np.arange(100) % 2
    found = site_preserved_folds(sites, layer, 5)
    at = {}
    for site, fold in zip(sites, found.fold_of, strict=True):
        assert at.setdefault(site, fold) == fold
    assert set(found.fold_of) == set(range(5))
    # 30 of each class in one site, an equal share would be 10.
    assert found.deviation == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="2 sites are too few"):
        site_preserved_folds(["a", "b"], np.array([0, 1]), 5)


@pytest.mark.full
def test_site_preserved_folds_on_real_cohorts(mil_data):
    path = mil_data / "tcga_clinical_splits" / "panther_survival_splits.csv.gz"
    with gzip.open(path, "rt") as f:
        rows = list(csv.DictReader(f))
    tasks = sorted({r["task"] for r in rows})
    assert len(tasks) == 8
    for task in tasks:
        seen = {}
        for r in rows:
            if r["task"] == task and r.get("tissue_source_site"):
                key = next(k for k in r if k.endswith("censorship") and r[k])
                seen[r["case_id"]] = (r["tissue_source_site"], int(float(r[key]) == 0))
        sites = [s for s, _ in seen.values()]
        layer = np.array([e for _, e in seen.values()])
        start = time.monotonic()
        found = site_preserved_folds(sites, layer, 5)
        assert time.monotonic() - start < 20
        folds: dict[str, set[int]] = {}
        for site, fold in zip(sites, found.fold_of, strict=True):
            folds.setdefault(site, set()).add(int(fold))
        assert all(len(v) == 1 for v in folds.values())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("slide_id,fold\na,0\nb,train\n", r"s\.csv, line 3: fold is 'train', not a number"),
        ("slide_id,fold\na,\n", r"s\.csv, line 2: fold is '', not a number"),
        ("slide_id,repeat,fold,part\na,x,0,test\n", r"s\.csv, line 2: repeat is 'x'"),
        ("slide_id,repeat,fold,part\na,0,-1,test\n", r"s\.csv, line 2: fold is '-1'"),
        ("case_id,slide_id,fold_0\na,a,held\n", r"s\.csv, line 2: fold_0 is 'held'"),
    ],
)
def test_a_fold_that_is_none_names_file_and_line(tmp_path, text, match):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_splits(tmp_path / "s.csv", {"a": "a", "b": "b"})


def test_a_fold_that_is_none_ends_the_command_with_2(cohort, capsys):
    from wsipipe.cli import main

    (cohort / "s.csv").write_text("slide_id,fold\ns00,a\n")
    files = {"features": "features", "labels": "labels.csv", "splits": "s.csv", "out": "out"}
    paths = [x for k, v in files.items() for x in (f"--{k}", str(cohort / v))]
    with pytest.raises(SystemExit) as stop:
        main(["train", *paths, "--target", "label"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "line 2: fold is 'a'" in said
    assert "train, val or test" in said


def test_random_draws_need_no_patient_of_each_class_per_draw():
    folds = make_folds(PATIENTS, Y, LABEL, folds=30, monte_carlo=0.2)
    assert len(folds) == 30
    one_unknown = Y.copy()
    one_unknown[3, 0] = np.nan
    assert len(make_folds(PATIENTS, one_unknown, LABEL, folds=5, monte_carlo=0.2)) == 5
    with pytest.raises(ConfigError, match=r"--monte-carlo 0\.02 of 40 patients"):
        make_folds(PATIENTS, Y, LABEL, folds=3, monte_carlo=0.02)


def test_patients_without_a_label_do_not_thin_out_the_inner_splits():
    layer = np.arange(40) % 2
    layer[:2] = -1
    splits = inner_splits(PATIENTS, layer, count=5, seed=0)
    assert len(splits) == 5
    known = dict(zip(PATIENTS, layer.tolist(), strict=True))
    for _, val in splits:
        assert 3 <= sum(known[p] == 1 for p in val) <= 5


def test_the_search_for_site_folds_ends_by_work_not_by_time(monkeypatch):
    import scipy.optimize

    asked, milp = [], scipy.optimize.milp

    def spy(*args, options, **kwargs):
        asked.append(dict(options))
        return milp(*args, options=options, **kwargs)

    monkeypatch.setattr(scipy.optimize, "milp", spy)
    site_preserved_folds([f"c{i % 7}" for i in range(40)], np.arange(40) % 2, 3)
    assert asked[0]["node_limit"] < 1e6
    assert asked[0]["time_limit"] >= 60


def test_clams_boolean_splits_have_an_unnamed_column_of_ids(tmp_path):
    text = ",train,val,test\na,True,False,False\nb,False,True,False\nc,False,False,True\n"
    (tmp_path / "splits_0_bool.csv").write_text(text)
    (fold,) = read_splits(tmp_path / "splits_0_bool.csv", {x: x for x in "abc"})
    assert (fold.train, fold.val, fold.test) == (("a",), ("b",), ("c",))


def test_ids_with_commas_survive_clams_form(tmp_path):
    folds = [Fold(0, 0, ("p,1", "p2"), ('p"3',))]
    slides = {"p,1": ["a, b"], "p2": ["c"], 'p"3': ['d"']}
    write_splits(tmp_path / "clam", folds, slides, "clam")
    owner = {s: p for p, own in slides.items() for s in own}
    (back,) = read_splits(tmp_path / "clam", owner)
    assert (back.train, back.test) == (folds[0].train, folds[0].test)


def test_stamps_patients_may_be_numbers(tmp_path):
    (tmp_path / "s.json").write_text(
        '{"splits": [{"train_patients": [1, 2], "test_patients": [3]}]}'
    )
    (fold,) = read_splits(tmp_path / "s.json", {"a": "1", "b": "2", "c": "3"})
    assert (fold.train, fold.test) == (("1", "2"), ("3",))


def test_splits_that_name_no_slides_cannot_be_rewritten(tmp_path, capsys):
    from wsipipe.cli import main

    (tmp_path / "s.csv").write_text(",train,val,test\n0,a,,b\n")
    with pytest.raises(SystemExit) as stop:
        main(["mil", "splits", str(tmp_path / "s.csv"), "--to", "stamp", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "no column 'slide_id'" in capsys.readouterr().err


def test_a_validation_part_of_survival_holds_two_events():
    for events in (4, 6, 9, 20):
        layer = (np.arange(40) < events).astype(int)
        splits = inner_splits(PATIENTS, layer, count=5, seed=events, survival=True)
        assert len(splits) == min(5, events // 2)
        place = {p: i for i, p in enumerate(PATIENTS)}
        assert all(sum(layer[place[p]] for p in val) >= 2 for _, val in splits)
