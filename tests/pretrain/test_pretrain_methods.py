"""Every method: a step runs, only the student gets gradients, the teacher follows, state stays."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_kit import stain_nuisance_tiles, tile_source, tiny_recipe

from wsipipe.errors import ConfigError
from wsipipe.pretrain.methods import At, create_method
from wsipipe.pretrain.methods.base import ema_update
from wsipipe.pretrain.methods.distill import block_masks, teacher_temp
from wsipipe.pretrain.methods.supervised import FixMatch
from wsipipe.pretrain.recipe import list_recipes
from wsipipe.pretrain.source import ArrayTiles, Region, open_tiles
from wsipipe.pretrain.trainer import Trainer
from wsipipe.pretrain.views import ViewBatch

SMALL = {
    "optim__batch": 6,
    "optim__steps": 2,
    "arch__args__depth": 2,
    "optim__accumulate": 1,
    "monitor__every": 100,
    "monitor__tiles": 8,
    "monitor__stop": False,
}
# Recipes that run code of their own; the others differ from these in numbers alone.
EVERY_RUN = {
    *("simclr", "moco-v2", "moco-v3", "byol", "clip", "mae", "simmim", "beit-v2", "dino", "ibot"),
    *("dinov2", "fixmatch", "finetune", "tissueconcepts", "pathoduet", "pathoduet-ihc", "pluto"),
    *("virchow2", "hibou", "rudolfv", "brow", "midnight"),
}


def _source(name: str) -> ArrayTiles:
    recipe = tiny_recipe(name)
    region = recipe.sampler.region
    source = tile_source(24, region=Region(region.factor, region.px) if region else None)
    if name == "clip":
        open_clip = pytest.importorskip("open_clip")
        words = [f"nuclei of kind {i}" for i in source.labels["label"]]
        source.labels["text"] = open_clip.tokenize(words).numpy()
    return source


@pytest.mark.parametrize(
    "name",
    [n if n in EVERY_RUN else pytest.param(n, marks=pytest.mark.full) for n in list_recipes()],
)
def test_recipe_trains_at_smoke_scale(name: str, tmp_path) -> None:
    changes = dict(SMALL)
    if name in ("beit-v2", "beph"):
        changes["loss__codes"] = 16
    if name == "finetune":
        changes["loss__mode"] = "linear"
    trainer = Trainer(tiny_recipe(name, **changes), _source(name), tmp_path)
    before = {k: v.clone() for k, v in trainer.method.named_parameters() if v.requires_grad}
    result = trainer.train()
    assert len(result.losses) == 2
    assert np.isfinite(result.losses).all()
    moved = [k for k, v in trainer.method.named_parameters() if v.requires_grad
             and not torch.equal(v, before[k])]  # fmt: skip
    assert len(moved) > 0.5 * len(before)
    assert result.tiles == 12
    width = trainer.method.encoder().out_dim
    assert trainer.features(trainer.source.tiles[:4]).shape == (4, width)


@pytest.mark.parametrize("name", ["moco-v2", "moco-v3", "byol", "dino", "dinov2"])
def test_teacher_starts_equal_gets_no_gradient_and_follows(name: str, tmp_path) -> None:
    method = create_method(tiny_recipe(name))
    student, teacher = method.student.net, method.teacher.net
    for a, b in zip(student.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert not b.requires_grad
    heads = zip(method.head.parameters(), method.teacher_head.parameters(), strict=True)
    for a, b in heads:
        torch.testing.assert_close(a, b)
    trainer = Trainer(tiny_recipe(name, **SMALL), tile_source(24), tmp_path)
    trainer.train()
    assert all(p.grad is None for p in trainer.method.teacher.parameters())
    assert not torch.equal(
        trainer.method.teacher.net.blocks[0].mlp.fc1.weight, teacher.blocks[0].mlp.fc1.weight
    )


def test_ema_equals_its_closed_form() -> None:
    student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    start = teacher.weight.detach().clone()
    with torch.no_grad():
        student.weight.fill_(1.0)
    for _ in range(7):
        ema_update(student, teacher, 0.9)
    torch.testing.assert_close(teacher.weight, 0.9**7 * start + (1 - 0.9**7))


def test_teacher_temperature_rises_then_stays() -> None:
    assert teacher_temp(0.0, (0.04, 0.07), 0.3) == pytest.approx(0.04)
    assert teacher_temp(0.15, (0.04, 0.07), 0.3) == pytest.approx(0.055)
    assert teacher_temp(0.9, (0.04, 0.07), 0.3) == pytest.approx(0.07)


def test_prototypes_stay_still_at_the_start(tmp_path) -> None:
    frozen = {**SMALL, "loss__freeze_last": 0.5, "optim__steps": 4}
    trainer = Trainer(tiny_recipe("dino", **frozen), tile_source(24), tmp_path)
    before = trainer.method.head.last_layer.weight_v.detach().clone()
    seen = []
    after_update = trainer.method.after_update

    def watch(at: At) -> None:
        seen.append(torch.equal(before, trainer.method.head.last_layer.weight_v))
        after_update(at)

    trainer.method.after_update = watch
    trainer.train()
    assert seen == [True, True, False, False]


def test_block_masks_have_the_ratio_and_depend_on_the_generator_alone() -> None:
    def draw(seed: int) -> torch.Tensor:
        return block_masks(200, 16, 0.5, (0.1, 0.5), torch.Generator().manual_seed(seed))

    masks = draw(0)
    torch.testing.assert_close(masks, draw(0))
    assert not torch.equal(masks, draw(1))
    share = masks.float().mean(dim=(1, 2))
    assert (share > 0).sum() == 100
    assert share[share > 0].mean() == pytest.approx(0.3, abs=0.03)
    assert share.max() <= 0.5
    assert block_masks(1, 8, 0.5, (0.1, 0.5), torch.Generator()).sum() == 0


def test_one_tile_without_masked_patches_trains_and_keeps_the_centre_finite(tmp_path) -> None:
    # One image of two views: lightly masks int(2 · .4) = 0 of them.
    recipe = tiny_recipe("ibot", **{**SMALL, "optim__batch": 1, "loss__ibot__images": 0.4})
    result = Trainer(recipe, tile_source(8), tmp_path).train()
    assert np.isfinite(result.losses).all()
    assert torch.isfinite(result.method.patch_targets.center).all()


def test_moco_queue_survives_a_checkpoint() -> None:
    method = create_method(tiny_recipe("moco-v2"))
    method.criterion.memory_bank.bank.fill_(0.5)
    method.criterion.memory_bank.bank_ptr.fill_(7)
    other = create_method(tiny_recipe("moco-v2"))
    other.load_state_dict(method.state_dict())
    assert (other.criterion.memory_bank.bank == 0.5).all()
    assert int(other.criterion.memory_bank.bank_ptr) == 7


def test_too_small_a_batch_is_refused_with_a_remedy(tmp_path) -> None:
    recipe = tiny_recipe("simclr", **{**SMALL, "optim__batch": 1})
    with pytest.raises(ConfigError, match=r"needs 2 tiles.*optim\.batch"):
        Trainer(recipe, tile_source(8), tmp_path)
    with pytest.raises(ConfigError, match="two tiles"):
        Trainer(tiny_recipe("dinov2", **{**SMALL, "optim__batch": 1}), tile_source(8), tmp_path)


def test_labels_are_asked_for(tmp_path) -> None:
    tiles, _ = stain_nuisance_tiles(8, 0)
    with pytest.raises(ConfigError, match="labels"):
        Trainer(tiny_recipe("tissueconcepts", **SMALL), ArrayTiles(tiles), tmp_path)
    with pytest.raises(ConfigError, match="text"):
        Trainer(tiny_recipe("clip", **SMALL), ArrayTiles(tiles), tmp_path).train()


def test_crops_that_cut_patches_are_refused_with_the_nearest_size(tmp_path) -> None:
    recipe = tiny_recipe("dino", **{**SMALL, "views__local__px": 33})
    with pytest.raises(ConfigError, match=r"views\.local\.px=32"):
        Trainer(recipe, tile_source(8), tmp_path)


def _folder(root, n: int = 12) -> None:
    tiles, labels = stain_nuisance_tiles(n, 3)
    for i, (tile, label) in enumerate(zip(tiles, labels % 2, strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / f"{i}.png")


def test_real_twins_of_another_stain_are_used(tmp_path) -> None:
    source = tile_source(24)
    recipe = tiny_recipe("pathoduet-ihc", **SMALL)
    alone = Trainer(recipe, source, tmp_path / "a").train().losses
    source.labels["twin"] = source.tiles[:, :, ::-1].copy()
    paired = Trainer(recipe, source, tmp_path / "b").train().losses
    assert np.isfinite(paired).all()
    assert paired != alone


def test_tiles_from_folder_csv_and_hdf5_are_the_same_pixels(tmp_path) -> None:
    import h5py

    _folder(tmp_path / "tiles")
    source = open_tiles(tmp_path / "tiles", 64)
    assert source.classes == {"label": 2}
    with (tmp_path / "tiles.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "task"])
        writer.writerows([f"tiles/{n}", n.split("/")[0], "t"] for n in source.names)
    table = open_tiles(tmp_path / "tiles.csv", 64)
    np.testing.assert_array_equal(table.tiles, source.tiles)
    np.testing.assert_array_equal(table.labels["label"], source.labels["label"])
    with h5py.File(tmp_path / "tiles.h5", "w") as file:
        file["tiles"], file["labels"] = source.tiles, source.labels["label"]
    np.testing.assert_array_equal(open_tiles(tmp_path / "tiles.h5", 64).tiles, source.tiles)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no PNG"):
        open_tiles(tmp_path / "empty", 64)


def test_every_tile_comes_once_an_epoch() -> None:
    source = tile_source(24)
    seen = np.concatenate([source.batch(i, 8, slice(0, 8)).slides for i in range(6)])
    assert sorted(seen[:24]) == list(range(24))
    assert sorted(seen[24:]) == list(range(24))
    assert list(seen[:24]) != list(seen[24:])


def test_fixmatch_learns_from_sure_guesses_alone_and_never_through_them() -> None:
    def outcome(threshold: float, label: int) -> tuple[FixMatch, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        method = FixMatch(tiny_recipe("fixmatch", loss__threshold=threshold), {"label": 6})
        generator = torch.Generator().manual_seed(0)
        views = list(torch.rand(2, 4, 3, 64, 64, generator=generator))
        batch = ViewBatch(views, labels={"label": torch.full((4,), label)})
        out = method(batch, At(0, 1, slice(0, 4), 4, generator))
        out["loss"].backward()
        return method, out

    _, unsure = outcome(1.0, -1)
    assert unsure["loss"] == 0
    assert unsure["pseudo_labelled"] == 0
    _, known = outcome(0.0, 2)
    assert known["loss"] == known["supervised"] > 0
    method, sure = outcome(0.0, -1)
    assert sure["pseudo_labelled"] == 1
    # The guesses are targets: only the strong views' answers get a gradient.
    found = method.head.weight.grad.clone()
    generator = torch.Generator().manual_seed(0)
    weak, strong = torch.rand(2, 4, 3, 64, 64, generator=generator)
    method.zero_grad()
    with torch.no_grad():
        guess = method.head(method.student(weak)).argmax(dim=1)
    torch.nn.functional.cross_entropy(method.head(method.student(strong)), guess).backward()
    torch.testing.assert_close(found, method.head.weight.grad, rtol=1e-4, atol=1e-6)
