"""The way back, the way in, fine-tuning, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretrain_kit import TINY, tile_source, tiny_recipe
from test_pretrain_stream import write_slide
from typer.testing import CliRunner

from wsipipe.cli import app
from wsipipe.encoders import create_encoder, resolve
from wsipipe.errors import ConfigError
from wsipipe.pretrain import pretrain
from wsipipe.pretrain.export import export_encoder
from wsipipe.pretrain.initial import arch_of, start_from
from wsipipe.pretrain.trainer import Trainer

FEW = {
    **TINY,
    "arch.args": {**TINY["arch.args"], "depth": 2},
    "optim.batch": 6,
    "optim.steps": 2,
    "monitor.every": 100,
    "monitor.tiles": 8,
    "monitor.stop": False,
}


@pytest.mark.parametrize("name", ["dinov2", "pathoduet-ihc", "virchow2", "remedis"])
def test_exported_encoder_answers_as_the_trainer_does(name: str, tmp_path: Path) -> None:
    changes = {k.replace(".", "__"): v for k, v in FEW.items()}
    if name == "remedis":
        changes |= {"arch__timm": "resnet10t", "arch__args": {}}
    trainer = Trainer(tiny_recipe(name, **changes), tile_source(16), tmp_path)
    trainer.train()
    folder = export_encoder(trainer.method.exported(), trainer.recipe, tmp_path / "encoder", {})
    encoder = create_encoder(str(folder), precision="fp32")
    tiles = trainer.source.tiles[:8]
    torch.testing.assert_close(
        encoder(tiles).clone(), trainer.features(tiles), atol=1e-6, rtol=1e-5
    )
    card = encoder.card
    assert card.tile_px == 64
    assert card.dim == trainer.method.encoder().out_dim
    mpp = trainer.recipe.sampler.mpp
    assert card.mpp == (max(mpp, key=mpp.get) if isinstance(mpp, dict) else mpp)
    if name == "pathoduet-ihc":
        assert card.pooling == "mean"
        assert card.mean == (0, 0, 0)


def test_export_claims_nothing_of_timm(tmp_path: Path) -> None:
    run = pretrain("dino", tiles=_tiles(tmp_path), out=tmp_path / "run", changes=FEW)
    text = (run.encoder / "config.json").read_text()
    for word in ("hf_hub_id", "url", "tag", "apache", "in1k", "augreg"):
        assert word not in text.lower()
    manifest = json.loads((run.encoder / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == "dino"
    assert manifest["tiles_seen"] == 12
    assert sum(manifest["slides_seen"].values()) == 12
    assert manifest["initial"] is None
    weights = (run.encoder / "model.safetensors").read_bytes()
    import hashlib

    assert manifest["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_plain_timm_loads_the_export(tmp_path: Path) -> None:
    import timm

    run = pretrain("dino", tiles=_tiles(tmp_path), out=tmp_path / "run", changes=FEW)
    model = timm.create_model(f"local-dir:{run.encoder}", pretrained=True).eval()
    encoder = create_encoder(str(run.encoder), precision="fp32")
    tiles = tile_source(4).tiles
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.card.mean, encoder.card.std))
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        theirs = model((images - mean) / std)
    torch.testing.assert_close(theirs, encoder(tiles).clone(), atol=1e-5, rtol=1e-4)


def _tiles(tmp_path: Path, n: int = 12) -> Path:
    source = tile_source(n)
    for i, (tile, label) in enumerate(zip(source.tiles, source.labels["label"] % 2, strict=True)):
        folder = tmp_path / "tiles" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / f"{i}.png")
    return tmp_path / "tiles"


def _exported(tmp_path: Path, name: str = "dino") -> Path:
    run = pretrain(name, tiles=_tiles(tmp_path), out=tmp_path / "first", changes=FEW)
    return run.encoder


def test_init_starts_from_the_encoder_with_its_position_embedding(tmp_path: Path) -> None:
    folder = _exported(tmp_path)
    start = start_from(str(folder))
    recipe = start.applied(tiny_recipe("dinov2", optim__batch=6, optim__steps=2))
    trainer = Trainer(recipe, tile_source(16), tmp_path / "second", initial=start.state)
    encoder = create_encoder(str(folder), precision="fp32")
    trunk = encoder.network.weights_module
    for net in (trainer.method.student.net, trainer.method.teacher.net):
        torch.testing.assert_close(net.pos_embed, trunk.pos_embed, atol=0, rtol=0)
    tiles = trainer.source.tiles[:4]
    torch.testing.assert_close(
        trainer.features(tiles), encoder(tiles).clone(), atol=1e-6, rtol=1e-5
    )


def test_init_from_a_catalogue_name_keeps_licence_and_normalisation(tmp_path: Path) -> None:
    run = pretrain(
        "mae",
        tiles=_tiles(tmp_path),
        out=tmp_path / "run",
        init="timm:vit_tiny_patch16_224?pretrained=false",
        changes={"optim.batch": 2, "optim.steps": 1, "monitor.tiles": 8, "monitor.stop": False},
    )
    manifest = json.loads((run.encoder / "manifest.json").read_text())
    assert manifest["initial"]["encoder"].startswith("timm:vit_tiny")
    assert manifest["initial_licence"]
    card = create_encoder(str(run.encoder)).card
    assert card.mean == pytest.approx((0.5, 0.5, 0.5))  # of timm's augreg ViTs, not the recipe's


def test_init_refuses_networks_whose_tokens_cannot_be_reached() -> None:
    for name in ("texture", "conch"):
        with pytest.raises(ConfigError, match="cannot be trained further"):
            arch_of(resolve(name))
    assert arch_of(resolve("phikon")).timm.startswith("vit_base")
    assert arch_of(resolve("virchow2")).pool == "cls+mean"


@pytest.mark.parametrize("mode", ["linear", "blocks", "lora"])
def test_fine_tuning_moves_what_it_should_and_exports_plain_weights(
    mode: str, tmp_path: Path
) -> None:
    if mode == "lora":
        pytest.importorskip("peft")
    folder = _exported(tmp_path)
    run = pretrain(
        "finetune",
        tiles=_tiles(tmp_path),
        out=tmp_path / mode,
        init=str(folder),
        changes={
            **{k: v for k, v in FEW.items() if not k.startswith("arch")},
            "optim.steps": 4,
            "optim.warmup": 0,
            "loss.mode": mode,
            "loss.blocks": 1,
            "loss.rank": 2,
        },
    )
    from safetensors.torch import load_file

    before = load_file(folder / "model.safetensors")
    after = load_file(run.encoder / "model.safetensors")
    assert set(before) == set(after)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    if mode == "linear":
        assert not moved
    elif mode == "blocks":
        assert moved
        assert all(k.startswith(("blocks.1.", "norm.")) for k in moved)
    else:
        assert "blocks.0.attn.qkv.weight" in moved
        assert not any("norm" in k or "embed" in k for k in moved)
    assert set(load_file(run.encoder / "head.safetensors")) == {"weight", "bias"}
    assert create_encoder(str(run.encoder))(tile_source(2).tiles).shape == (2, 96)


def test_command_goes_from_slides_to_extraction(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for i in range(2):
        write_slide(folder / f"s{i}.tif", seed=i, mpp=0.5)
    sets = [x for k, v in FEW.items() for x in ("--set", f"{k}={json.dumps(v)}")]
    args = ["pretrain", "--recipe", "dino", "--slides", str(folder), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*args, *sets, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["slides"] == 2
    # The same command again finds all done; with other settings it is refused.
    manifest = (tmp_path / "run" / "encoder" / "manifest.json").read_bytes()
    for extra in ([], ["--resume"]):
        again = CliRunner().invoke(app, [*args, *sets, *extra])
        assert again.exit_code == 0, again.output
        assert (tmp_path / "run" / "encoder" / "manifest.json").read_bytes() == manifest
    other = CliRunner().invoke(app, [*args, *sets, "--set", "seed=5"])
    assert isinstance(other.exception, ConfigError)
    assert "seed: 0 there, 5 asked" in str(other.exception)

    import wsipipe

    result = wsipipe.extract([folder], encoder=report["encoder"], out=tmp_path / "features")
    assert len(result.done) == 2
    h5 = next((tmp_path / "features" / "features").rglob("s0.h5"))
    features = wsipipe.read_features(h5)
    assert features.features.shape[1] == 96
    # The stored features are the trainer's, to the precision of float16.
    encoder = create_encoder(report["encoder"], precision="fp32")
    with wsipipe.open_slide(folder / "s0.tif") as slide:
        x, y = (int(v) for v in features.coords[0])
        want = encoder(slide.read(x, y, 64, 64)[None]).numpy()[0]
    got = np.asarray(features.features[0], np.float32)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max() + 1e-3


def test_slides_or_tiles_one_of_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either slides or tiles"):
        pretrain("dino", out=tmp_path / "run")
