"""`wsipipe run`: mistakes are refused with their line; only what is missing or changed runs."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wsipipe.cli.run import STAGES, command_spec
from wsipipe.errors import ConfigError, Drained
from wsipipe.pipeline import chain
from wsipipe.pipeline.chain import plan_stages, run_stages
from wsipipe.pipeline.recipe import Recipe, load_recipe
from wsipipe.synth import make_cohort

RECIPES = sorted((Path(__file__).resolve().parents[2] / "pipelines").glob("*.yaml"))
COMMANDS = {name: command_spec(name) for name in STAGES}


def recipe_of(tmp_path: Path, text: str, *changes: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, COMMANDS, changes)


GOOD = """\
settings: {out: OUT, size: 512}
stages:
  synth:
    out: ${out}/slides
    number: 1
    size: ${size}
  tissue:
    needs: [synth]
    slides: ["${synth.out}"]
    out: ${out}
"""


@pytest.mark.parametrize(
    ("wrong", "right", "line", "word"),
    [
        ("    number: 1", "    numbr: 1", 5, "Did you mean 'number'"),
        ("    number: 1", "    number: many", 5, "not a whole number"),
        ("  tissue:", "  tisue:", 7, "Did you mean 'tissue'"),
        ("[synth]", "[synht]", 8, "Did you mean 'synth'"),
        ("${size}", "${sise}", 6, "Did you mean 'size'"),
        ("    number: 1", "    number: [1, 2]", 5, "one value"),
        ("    number: 1", "    no_mpp: maybe", 5, "true or false"),
        ("    number: 1", "    size: 256", 6, "there twice"),
        ("settings:", "setings:", 1, "Did you mean 'settings'"),
        ('    slides: ["${synth.out}"]\n', "", 7, "needs 'slides'"),
        ("[synth]", "[[synth]]", 8, "is no stage before"),
        (GOOD, "", 1, "not a mapping"),
        (GOOD, "# nothing yet\n", 1, "not a mapping"),
        (GOOD, "settings: {out: o}\nstages: {}\n", 2, "at least one stage"),
        (GOOD, "settings: &a [*a]\n", 1, "holds itself"),
    ],
)
def test_mistakes_are_refused_with_their_line(
    tmp_path: Path, wrong: str, right: str, line: int, word: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, GOOD.replace(wrong, right))
    assert f"line {line}:" in str(caught.value)
    assert word in str(caught.value)


def test_set_changes_settings_and_options_and_refuses_others(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, GOOD, "size=1024", "synth.number=2")
    assert "--size=1024" in recipe.stages[0].arguments
    assert "--number=2" in recipe.stages[0].arguments
    with pytest.raises(ConfigError, match="Did you mean 'size'"):
        recipe_of(tmp_path, GOOD, "sizes=1")
    with pytest.raises(ConfigError, match="not KEY=VALUE"):
        recipe_of(tmp_path, GOOD, "size")


def test_for_makes_one_stage_a_combination_and_names_them_all_later(tmp_path: Path) -> None:
    text = """\
settings: {out: OUT}
stages:
  train:
    for: {aggregator: [abmil, mean], k: [3, 5]}
    features: f
    labels: l.csv
    target: label
    folds: ${k}
    aggregator: ${aggregator}
    out: ${out}/${aggregator}-${k}
  compare: {needs: [train], models: "${train.out}"}
"""
    recipe = recipe_of(tmp_path, text)
    assert [stage.name for stage in recipe.stages] == [
        "train[abmil,3]", "train[abmil,5]", "train[mean,3]", "train[mean,5]", "compare",
    ]  # fmt: skip
    assert recipe.stages[-1].arguments == (
        "--", "OUT/abmil-3", "OUT/abmil-5", "OUT/mean-3", "OUT/mean-5",
    )  # fmt: skip
    assert recipe.stages[-1].needs == tuple(stage.name for stage in recipe.stages[:-1])


def test_extract_tells_the_folders_it_writes(tmp_path: Path) -> None:
    text = """\
settings: {out: OUT}
stages:
  extract: {slides: [s], encoder: [uni_v1, H-optimus-0], tile_px: 256, allow_off_card: true}
  train:
    needs: [extract]
    for: {folder: "${extract.folder}"}
    features: ${out}/features/${folder}
    labels: l.csv
    target: [label]
    out: ${out}/${folder}
"""
    names = [stage.name for stage in recipe_of(tmp_path, text).stages[1:]]
    assert names == ["train[uni@256px-0.5mpp]", "train[h-optimus-0@256px-0.5mpp]"]
    joined = text.replace('    for: {folder: "${extract.folder}"}\n', "")
    with pytest.raises(ConfigError, match="is a list"):
        recipe_of(tmp_path, joined.replace("${folder}", "${extract.folder}"))
    one = joined.replace("${folder}", "${extract.folder}").replace("uni_v1, ", "")
    features = [w for w in recipe_of(tmp_path, one).stages[1].arguments if "--features" in w]
    assert features == ["--features=OUT/features/h-optimus-0@256px-0.5mpp"]


def test_a_crash_is_no_request_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, GOOD.replace("OUT", str(tmp_path / "out")))
    said: list[str] = []
    monkeypatch.setattr(chain, "_run", lambda _: -signal.SIGKILL)
    assert run_stages(recipe, say=said.append) == {"synth": 137}
    assert said[-2:] == [
        "synth: crashed (SIGKILL).",
        "synth: ended with code 137; the stages after it wait.",
    ]
    monkeypatch.setattr(chain, "_run", lambda _: -signal.SIGTERM)
    with pytest.raises(Drained):
        run_stages(recipe, say=said.append)


def test_rerun_does_only_what_is_missing_or_changed(tmp_path: Path) -> None:
    text = GOOD.replace("OUT", str(tmp_path / "out"))
    said: list[str] = []
    recipe = recipe_of(tmp_path, text)
    assert [p.reason for p in plan_stages(recipe)] == ["not done yet", "not done yet"]
    assert run_stages(recipe, say=said.append) == {"synth": 0, "tissue": 0}
    masks = tmp_path / "out" / "tissue"
    assert len(list(masks.glob("*.geojson"))) == 1

    assert not any(p.to_do for p in plan_stages(recipe))
    assert run_stages(recipe, say=said.append) == {}

    (tmp_path / "out" / "slides" / "more.svs").write_bytes(b"not a slide")
    plan = {p.stage.name: p for p in plan_stages(recipe)}
    assert not plan["synth"].to_do
    assert "slides" in plan["tissue"].reason
    assert run_stages(recipe, say=said.append) == {"tissue": 1}
    assert "failed the last time" in plan_stages(recipe)[1].reason

    changed = recipe_of(tmp_path, text, "synth.number=2")
    reasons = [p.reason for p in plan_stages(changed)]
    assert reasons[0] == "changed: options.number"
    assert reasons[1]


def test_a_stage_that_cannot_start_ends_the_run_with_its_code(tmp_path: Path) -> None:
    text = GOOD.replace("OUT", str(tmp_path / "out"))
    recipe = recipe_of(tmp_path, text, "synth.number=-1")
    assert run_stages(recipe, say=lambda _: None) == {"synth": 2}
    assert not list((tmp_path / "out").rglob("*.geojson"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path, COMMANDS)
    assert recipe.about
    assert recipe.stages


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_shipped_recipes_run_end_to_end(tmp_path: Path) -> None:
    make_cohort(tmp_path / "slides", n=12, width=2048)
    labels = tmp_path / "slides" / "labels.csv"
    rows = list(csv.DictReader(labels.read_text(encoding="utf-8").splitlines()))
    with labels.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "time", "event"])
        writer.writeheader()
        for i, row in enumerate(rows):
            late = row["label"] == "tumour"
            writer.writerow({**row, "time": 5 + i + 20 * late, "event": int(i % 4 != 0)})
    changes = {
        "subtyping": ["folds=3", "train.epochs=2"],
        "survival": ["folds=3", "train.epochs=2"],
        "encoder-comparison": ["folds=3", "train.epochs=2"],
        "deploy": ["slides=slides"],
    }
    for name in ("extract-only", "subtyping", "survival", "encoder-comparison", "deploy"):
        path = next(p for p in RECIPES if p.stem == name)
        words = [word for change in changes.get(name, []) for word in ("--set", change)]
        command = [sys.executable, "-m", "wsipipe", "run", str(path), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    out = tmp_path / "wsipipe-out"
    assert json.loads((out / "train" / "metrics.json").read_text())["metrics"]["auroc"]
    assert len((out / "comparison.csv").read_text().splitlines()) == 5
    assert len(list((out / "heatmaps").glob("slide-*.geojson"))) == 12
    assert (tmp_path / "wsipipe-new" / "predictions.csv").is_file()
