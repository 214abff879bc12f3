"""The loop: schedules, seeds, resume, kills, two processes, NaN, collapse, drains."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_kit import tile_source, tiny_recipe

from wsipipe.errors import ConfigError, CorruptFileError, Drained
from wsipipe.pretrain.checkpoint import latest
from wsipipe.pretrain.errors import CollapseError, DivergedError
from wsipipe.pretrain.methods import At
from wsipipe.pretrain.monitors import CollapseAlarm, Limits, feature_health, knn_accuracy
from wsipipe.pretrain.options import Optim
from wsipipe.pretrain.schedule import build_optimizer, cosine, learning_rate, warmup_cosine
from wsipipe.pretrain.trainer import Trainer

BASE = {
    "arch__args__depth": 2,
    "optim__batch": 8,
    "optim__steps": 20,
    "monitor__every": 1000,
    "monitor__tiles": 8,
    "monitor__stop": False,
}


def _train(out: Path, name: str = "dinov2", source=None, **changes: object) -> list[float]:
    recipe = tiny_recipe(name, **{**BASE, **changes})
    trainer = Trainer(recipe, source or tile_source(32), out)
    trainer.resume()
    return trainer.train().losses


def _logged(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in rows if "loss" in r}


# -- schedules ------------------------------------------------------------------------------


def test_cosine_and_warmup_at_their_ends() -> None:
    assert cosine(0, 100, 0.04, 0.4) == pytest.approx(0.04)
    assert cosine(99, 100, 0.04, 0.4) == pytest.approx(0.4)
    assert cosine(50, 101, 0.996, 1.0) == pytest.approx(0.998)
    assert warmup_cosine(0, 100, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(9, 100, 0.1) == pytest.approx(1)
    assert warmup_cosine(99, 100, 0.1, 0.01) == pytest.approx(0.01)


def test_learning_rate_follows_the_batch_as_the_recipe_says() -> None:
    assert learning_rate(Optim(lr=5e-4, lr_batch=256, batch=1024)) == pytest.approx(2e-3)
    sqrt = Optim(lr=4e-3, lr_batch=1024, batch=256, lr_rule="sqrt")
    assert learning_rate(sqrt) == pytest.approx(2e-3)


def test_layer_decay_and_weight_decay_groups(tmp_path: Path) -> None:
    recipe = tiny_recipe("dinov2", **BASE, optim__layer_decay=0.5, optim__patch_embed_lr=0.2)
    method = Trainer(recipe, tile_source(16), tmp_path).method
    optimizer = build_optimizer(method, recipe.optim)
    where = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    net = method.student.net
    depth = len(net.blocks)
    assert where[id(net.blocks[depth - 1].mlp.fc1.weight)]["lr_scale"] == pytest.approx(0.5)
    assert where[id(net.blocks[0].mlp.fc1.weight)]["lr_scale"] == pytest.approx(0.5**depth)
    embed = where[id(net.patch_embed.proj.weight)]
    assert embed["lr_scale"] == pytest.approx(0.2 * 0.5 ** (depth + 1))
    assert where[id(net.norm.weight)] != where[id(net.blocks[0].mlp.fc1.weight)]
    for parameter in (net.cls_token, net.pos_embed, net.norm.weight, net.blocks[0].mlp.fc1.bias):
        assert where[id(parameter)]["decay"] is False
    assert len(where) == sum(p.requires_grad for p in method.parameters())


# -- repeatability --------------------------------------------------------------------------


def test_same_seed_same_losses_other_seed_other_losses(tmp_path: Path) -> None:
    first = _train(tmp_path / "a", optim__steps=6)
    assert _train(tmp_path / "b", optim__steps=6) == first
    assert _train(tmp_path / "c", optim__steps=6, seed=1) != first


@pytest.mark.parametrize("name", ["dinov2", "moco-v2"])
def test_drained_run_resumes_to_the_same_losses(name: str, tmp_path: Path) -> None:
    changes = {"arch__drop_path": 0.2}
    whole = _train(tmp_path / "whole", name, **changes)
    recipe = tiny_recipe(name, **{**BASE, **changes})
    stopped = Trainer(recipe, tile_source(32), tmp_path / "cut", stop_signal=lambda: "SIGTERM")
    with pytest.raises(Drained):
        stopped.train()
    assert latest(tmp_path / "cut" / "checkpoints").name == "step-00000010.pt"
    rest = _train(tmp_path / "cut", name, **changes)
    assert rest == whole[10:]
    assert list(_logged(tmp_path / "cut").values()) == whole


_CHILD = """
import sys; sys.path[:0] = [{tests!r}]
import torch; torch.set_num_threads(1)
from pathlib import Path
from pretrain_kit import tile_source, tiny_recipe
from wsipipe.pretrain.trainer import Trainer
trainer = Trainer(tiny_recipe("dino", **{base!r}), tile_source(32), Path({out!r}))
trainer.resume()
trainer.train()
"""


def test_killed_run_resumes_to_the_same_losses(tmp_path: Path) -> None:
    # A checkpoint as often as the clock allows, and enough steps that the kill comes first.
    base = {**BASE, "optim__steps": 400, "optim__batch": 4, "monitor__minutes": 0.002}
    script = _CHILD.format(tests=str(Path(__file__).parent), base=base, out=str(tmp_path / "cut"))
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ})
    try:
        deadline = time.monotonic() + 120
        while latest(tmp_path / "cut" / "checkpoints") is None:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.wait()
    reached = int(latest(tmp_path / "cut" / "checkpoints").stem.removeprefix("step-"))
    assert 0 < reached < 400

    def first_steps(out: Path, until: int) -> list[float]:
        recipe = tiny_recipe("dino", **base)
        trainer = Trainer(recipe, tile_source(32), out)
        trainer.resume()
        trainer.stop_signal = lambda: "stop" if trainer.step >= until else None
        with pytest.raises(Drained):
            trainer.train()
        return list(_logged(out).values())

    until = reached + 10
    resumed = first_steps(tmp_path / "cut", until)
    unbroken = first_steps(tmp_path / "whole", until)
    assert resumed[: len(unbroken)] == unbroken


def test_accumulated_gradients_are_those_of_the_mean(tmp_path: Path) -> None:
    recipe = tiny_recipe("mae", **{**BASE, "optim__steps": 1}, optim__accumulate=2, optim__clip=0)
    source, rows = tile_source(32), slice(0, 4)
    trainer = Trainer(recipe, source, tmp_path / "a")
    found: dict[str, torch.Tensor] = {}
    trainer.method.before_update = lambda at: found.update(
        {n: p.grad.clone() for n, p in trainer.method.named_parameters() if p.grad is not None}
    )
    trainer.train()
    other = Trainer(recipe, source, tmp_path / "b")
    for k in range(2):
        update = other.update
        views = update._views(source.batch(k, 4, rows), update._generator(k, 0), rows)
        loss = other.method(views, At(0, 1, rows, 4, update._generator(k, 1)))["loss"]
        (loss / 2).backward()
    expected = {n: p.grad for n, p in other.method.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_bf16_stays_finite_and_near_fp32(tmp_path: Path) -> None:
    exact = _train(tmp_path / "a", optim__steps=3)
    rounded = _train(tmp_path / "b", optim__steps=3, optim__precision="bf16")
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact


# -- two processes --------------------------------------------------------------------------

_RANK = """
import sys; sys.path[:0] = [{tests!r}]
import json, torch; torch.set_num_threads(1)
from pathlib import Path
from pretrain_kit import tile_source, tiny_recipe
from wsipipe.pretrain.trainer import Trainer
torch.distributed.init_process_group("gloo")
losses = {{}}
for name, changes in {recipes!r}.items():
    trainer = Trainer(tiny_recipe(name, **changes), tile_source(32), Path({out!r}, name))
    losses[name] = trainer.train().losses
if torch.distributed.get_rank() == 0:
    Path({out!r}, "losses.json").write_text(json.dumps(losses))
torch.distributed.destroy_process_group()
"""


def test_two_processes_show_the_losses_of_one_with_the_joined_batch(tmp_path: Path) -> None:
    # Methods with batch norm in their heads are left out: its statistics are each process's own.
    few = {**BASE, "optim__steps": 4}
    recipes = {
        "dino": few,
        "virchow2": {**few, "loss__centering": "sinkhorn", "views__stain__transfer": 0.5},
        "mae": few,
    }
    out = tmp_path / "two"
    out.mkdir()
    script = tmp_path / "rank.py"
    tests = str(Path(__file__).parent)
    script.write_text(_RANK.format(tests=tests, recipes=recipes, out=str(out)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]
    assert [p.wait(timeout=240) for p in ranks] == [0, 0]
    together = json.loads((out / "losses.json").read_text())
    for name, changes in recipes.items():
        alone = _train(tmp_path / "one" / name, name, **changes)
        assert together[name] == pytest.approx(alone, rel=2e-4), name


# -- what goes wrong ------------------------------------------------------------------------


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe("mae", **BASE)
    trainer = Trainer(recipe, tile_source(32), tmp_path)
    trainer.stop_signal = lambda: "stop" if trainer.step == 10 else None
    with pytest.raises(Drained):
        trainer.train()
    again = Trainer(recipe, tile_source(32), tmp_path)
    again.resume()
    with torch.no_grad():
        again.method.student.net.pos_embed.fill_(float("nan"))
    with pytest.raises(
        DivergedError, match=r"step 10 the loss is nan.*step-00000010\.pt"
    ) as caught:
        again.train()
    assert caught.value.checkpoint == latest(tmp_path / "checkpoints")
    stored = torch.load(caught.value.checkpoint, weights_only=True)
    assert torch.isfinite(stored["method"]["student.net.pos_embed"]).all()


def test_checkpoint_of_another_recipe_is_refused_naming_the_fields(tmp_path: Path) -> None:
    _train(tmp_path, optim__steps=2)
    with pytest.raises(ConfigError, match=r"loss\.koleo: 0\.1 there, 0\.2 asked"):
        _train(tmp_path, optim__steps=2, loss__koleo=0.2)
    path = latest(tmp_path / "checkpoints")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match="not a whole checkpoint"):
        _train(tmp_path, optim__steps=2)


def test_resuming_on_other_tiles_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, optim__steps=2)
    with pytest.raises(ConfigError, match="other slides or tiles"):
        _train(tmp_path, source=tile_source(24), optim__steps=2)


def test_batches_that_processes_cannot_share_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsipipe.pretrain.update.world_size", lambda: 3)
    with pytest.raises(ConfigError, match="cannot be shared by 3"):
        Trainer(tiny_recipe("mae", **BASE), tile_source(8), tmp_path)


def test_alarm_needs_grace_and_patience() -> None:
    alarm = CollapseAlarm(Limits(patience=2, grace=0.5), total_steps=100)
    flat = {"feature_std": 1e-6, "rankme": 1.0, "mean_cosine": 1.0}
    fine = {"feature_std": 0.05, "rankme": 30.0, "mean_cosine": 0.4}
    assert alarm.check(10, 96, flat) is None  # within grace
    assert alarm.check(60, 96, flat) is None  # once is not enough
    assert alarm.check(70, 96, fine) is None  # and starts anew
    assert alarm.check(80, 96, flat) is None
    assert "effective rank" in str(alarm.check(90, 96, flat))


def test_collapsed_teacher_trips_the_alarm(tmp_path: Path) -> None:
    # A teacher that says the same for every tile: temperature 1 and no centring.
    changes = {
        "loss__centering": "none",
        "loss__temp": (50.0, 50.0),
        "monitor__every": 5,
        "monitor__stop": True,
        "monitor__grace": 0.2,
        "monitor__patience": 2,
    }
    with pytest.raises(CollapseError, match="teacher entropy"):
        _train(tmp_path, "dino", **changes)


def test_health_tells_spread_from_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(512, 32, generator=generator)
    flat = torch.ones(512, 32) + 1e-3 * torch.randn(512, 1, generator=generator)
    healthy, collapsed = feature_health(spread), feature_health(flat)
    assert healthy["feature_std"] == pytest.approx(1 / math.sqrt(32), rel=0.02)
    assert healthy["rankme"] > 30
    assert healthy["mean_cosine"] == pytest.approx(0, abs=0.02)
    assert collapsed["feature_std"] < 1e-5
    assert collapsed["rankme"] < 2
    assert collapsed["mean_cosine"] > 0.999


def test_knn_agrees_with_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    x = rng.normal(size=(300, 8)) + np.eye(8)[y] * 1.5
    reference = KNeighborsClassifier(5, metric="cosine").fit(x[:200], y[:200])
    ours = knn_accuracy(
        torch.from_numpy(x[:200]).float(),
        torch.from_numpy(y[:200]),
        torch.from_numpy(x[200:]).float(),
        torch.from_numpy(y[200:]),
        k=5,
    )
    assert ours == pytest.approx(reference.score(x[200:], y[200:]), abs=0.021)
