"""Recipes: all load, name their source, fit their network; unknown keys are errors."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from wsipipe.cli import app
from wsipipe.errors import ConfigError
from wsipipe.pretrain.backbone import build_backbone
from wsipipe.pretrain.options import Arch
from wsipipe.pretrain.recipe import SCALES, list_recipes, load_recipe
from wsipipe.words import read_setting

SEED_MODELS = {
    *("virchow", "virchow2", "h-optimus-0", "kaiko", "midnight", "uni", "brow", "phikon"),
    *("phikon-v2", "tissueconcepts", "hibou", "pluto", "pathoduet", "pathoduet-ihc", "rudolfv"),
    *("remedis", "beph"),
}
TECHNIQUES = {
    *("simclr", "moco-v2", "moco-v3", "byol", "clip", "mae", "simmim", "beit-v2", "dino"),
    *("ibot", "dinov2", "fixmatch", "finetune"),
}

# Published sizes in millions of parameters: the makers' own words.
PUBLISHED_MILLIONS = {
    "virchow": 631.2,
    "virchow2": 631.2,
    "h-optimus-0": 1134.8,
    "uni": 303.4,
    "phikon": 85.8,
    "phikon-v2": 303.4,
}

# Corrected sources: several lists in circulation give other papers' numbers.
PAPERS = {
    "virchow2": "2408.00738",
    "phikon": "2023.07.21.23292757",
    "phikon-v2": "2409.09173",
    "pluto": "2405.07905",
    "rudolfv": "2401.04079",
    "hibou": "2406.05074",
    "pathoduet": "2312.09894",
    "remedis": "2205.09723",
    "uni": "2308.15474",
    "kaiko": "2404.15217",
    "midnight": "2504.05186",
    "brow": "2309.08259",
    "tissueconcepts": "2409.03519",
}


def _patch(arch: Arch) -> int:
    """Edge of a patch, as the architecture's name or its arguments say it; 0 = not a ViT."""
    named = re.search(r"patch(\d+)", arch.timm)
    return int(arch.args.get("patch_size", named.group(1) if named else 0))


def _parameters(arch: Arch) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_backbone(arch).parameters())


def test_every_seed_model_and_technique_has_a_recipe() -> None:
    assert set(list_recipes()) >= SEED_MODELS | TECHNIQUES


@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("scale", SCALES)
def test_recipe_loads_and_its_crops_are_whole_patches(name: str, scale: str) -> None:
    recipe = load_recipe(name, scale)
    assert recipe.name == name
    assert recipe.exact
    assert recipe.deviations
    for patch in recipe.arch.patch_sizes or (_patch(recipe.arch) or 1,):
        assert recipe.views.global_.px % patch == 0
        assert not recipe.views.local.n or recipe.views.local.px % patch == 0


def test_smoke_scale_is_small() -> None:
    archs = {load_recipe(n, "smoke").arch.model_dump_json() for n in list_recipes()}
    for arch in archs:
        assert _parameters(Arch.model_validate_json(arch)) < 3e6


@pytest.mark.full
@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_networks_of_all_scales_can_be_built(name: str, scale: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(load_recipe(name, scale).arch)
    assert backbone.patch == (_patch(load_recipe(name, scale).arch) if backbone.is_vit else 0)


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_paper_scale_has_the_published_number_of_parameters(name: str) -> None:
    assert _parameters(load_recipe(name, "paper").arch) / 1e6 == pytest.approx(
        PUBLISHED_MILLIONS[name], abs=0.6
    )


@pytest.mark.parametrize("name", PAPERS)
def test_recipe_names_the_right_paper(name: str) -> None:
    assert PAPERS[name] in load_recipe(name).paper


def test_recipes_differ_where_their_papers_do() -> None:
    virchow2, virchow = load_recipe("virchow2"), load_recipe("virchow")
    assert virchow2.loss.kde.kappa == 5
    assert virchow2.loss.koleo == 0
    assert virchow.loss.kde is None
    assert virchow.loss.koleo == 0.1
    assert virchow2.sampler.mpp == {0.25: 0.2, 0.5: 0.4, 1.0: 0.2, 2.0: 0.2}
    assert load_recipe("hibou").views.solarize_p == (0, 0, 0)
    assert load_recipe("dinov2").views.blur_p == (0, 0.9, 0.5)
    assert load_recipe("phikon").loss.ibot.separate_head is False


def test_unknown_keys_scales_and_recipes_are_errors_that_name_them() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.stepz'"):
        load_recipe("dinov2", "smoke", {"optim.stepz": 3})
    with pytest.raises(ConfigError, match=r"unknown key 'loss\.koleoo'|unknown key 'koleoo'"):
        load_recipe("dinov2", "smoke", {"loss.koleoo": 3})
    with pytest.raises(ConfigError, match="scale"):
        load_recipe("dinov2", "tiny")
    with pytest.raises(ConfigError, match="--list"):
        load_recipe("dinov9")


def test_set_reads_yaml_values_and_replaces_mixtures_whole() -> None:
    items = ["optim.lr=1e-3", "sampler.mpp={0.5: 1, 1.0: 1}", "loss.ibot=null"]
    changes = dict(map(read_setting, items))
    recipe = load_recipe("virchow2", "smoke", changes)
    assert recipe.optim.lr == 1e-3
    assert recipe.sampler.mpp == {0.5: 1, 1.0: 1}
    assert recipe.loss.ibot is None
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        read_setting("optim.lr")


def test_a_user_file_can_build_on_a_packaged_recipe(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nbase: dinov2\ntitle: t\npaper: none\nexact: [x]\ndeviations: [y]\n"
        "loss: {koleo: 0.5}\n"
    )
    recipe = load_recipe(str(file), "smoke")
    assert recipe.loss.koleo == 0.5
    assert recipe.loss.k == load_recipe("dinov2", "smoke").loss.k


def test_command_lists_and_describes() -> None:
    listed = CliRunner().invoke(app, ["pretrain", "--list"])
    assert listed.exit_code == 0
    assert "virchow2" in listed.output
    told = CliRunner().invoke(app, ["pretrain", "--describe", "virchow2"])
    assert told.exit_code == 0
    assert "2408.00738" in told.output
    assert "not a replication" in told.output
    assert "loss.kde.kappa = 5.0" in told.output
