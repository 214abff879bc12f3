"""Checkpoints of one's own: --weights for a closed encoder, YAML cards, conversions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from wsipipe.encoders import create_encoder, resolve
from wsipipe.encoders.convert.__main__ import main as convert
from wsipipe.encoders.convert.remedis import timm_names
from wsipipe.errors import ConfigError, UnknownEncoderError, WeightsError
from wsipipe.weights import read_state

CARD = {
    "name": "ours",
    "arch": "vit_tiny_patch16_224",
    "kwargs": {"depth": 2, "reg_tokens": 2, "init_values": 1e-5},
    "prefix_tokens": 3,
    "pooling": "cls+mean",
    "dim": 384,
    "tile_px": 224,
    "mpp": 0.5,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "weights": "teacher.pth",
    "layout": "dinov2",
    "unwrap": ["teacher"],
    "strip": ["backbone."],
    "drops": ["*dino_head*"],
}


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=2, reg_tokens=2, init_values=1e-5
    )
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()}
    state["backbone.register_tokens"] = state.pop("backbone.reg_token")
    state["dino_head.weight"] = torch.zeros(3)
    torch.save({"teacher": state, "epoch": 9}, tmp_path / "teacher.pth")
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(CARD))
    return path


def test_yaml_card_runs_a_private_checkpoint(card_file: Path, tiles) -> None:
    import timm

    encoder = create_encoder(str(card_file), precision="fp32")
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=2, reg_tokens=2, init_values=1e-5
    ).eval()
    state = torch.load(card_file.with_name("teacher.pth"), weights_only=True)["teacher"]
    renamed = {
        k.removeprefix("backbone.").replace("register_tokens", "reg_token"): v
        for k, v in state.items()
        if "dino_head" not in k
    }
    model.load_state_dict(renamed)
    with torch.no_grad():
        pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        tokens = model.forward_features(pixels)
    expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1)
    assert torch.allclose(encoder(tiles), expected, atol=1e-5)
    assert encoder.identity()["definition"] is not None


def test_yaml_card_that_would_average_registers_is_refused(card_file: Path) -> None:
    card_file.write_text(yaml.safe_dump({**CARD, "prefix_tokens": 1}))
    with pytest.raises(ConfigError, match=r"1 tokens are not patches.* has 3"):
        create_encoder(str(card_file))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"poolling": "cls"}, "unknown: poolling"),
        ({"dim": None}, "missing: dim"),
        ({"layout": "caffe"}, "layout 'caffe'"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"mean": [124, 116, 104], "std": [58, 57, 57]}, "scaled to 0..1"),
        ({"kwargs": [1]}, "kwargs must be a mapping"),
    ],
)
def test_wrong_cards_are_told(card_file: Path, change: dict, complaint: str) -> None:
    settings = {k: v for k, v in {**CARD, **change}.items() if v is not None}
    card_file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=complaint):
        create_encoder(str(card_file))


def test_files_that_are_no_cards(tmp_path: Path) -> None:
    with pytest.raises(UnknownEncoderError, match="no card"):
        resolve(str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        resolve(str(broken))
    broken.write_text("- a list")
    with pytest.raises(ConfigError, match="mapping"):
        resolve(str(broken))
    broken.write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match="not YAML"):
        resolve(str(broken))


def test_kwargs_may_be_left_empty(card_file: Path) -> None:
    card_file.write_text(yaml.safe_dump({**CARD, "kwargs": None}))
    assert resolve(str(card_file)).arch_kwargs == {}


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x93NUMPY and more")
    with pytest.raises(WeightsError, match="neither safetensors nor a checkpoint") as caught:
        read_state(path, "ours")
    assert "weights_only" not in str(caught.value)
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(WeightsError, match=r"holds torch.nn.modules.linear.Linear") as caught:
        read_state(path, "ours")
    assert "weights_only" not in str(caught.value)  # torch's advice is to unpickle


def test_closed_encoders_ask_for_a_checkpoint() -> None:
    for name in ("rudolfv", "brow", "pluto", "virchow2g"):
        with pytest.raises(WeightsError, match="not published") as caught:
            create_encoder(name)
        assert "--weights FILE" in caught.value.remedy
        assert caught.value.exit_code == 3


def test_closed_encoder_takes_a_dino_checkpoint(tmp_path: Path, tiles) -> None:
    import timm

    model = timm.create_model("vit_small_patch16_224", num_classes=0)
    nested = {f"module.backbone.{k}": v for k, v in model.state_dict().items()}
    nested["module.dino_head.mlp.0.weight"] = torch.zeros(4)
    torch.save({"teacher": nested}, tmp_path / "pluto.pth")
    encoder = create_encoder("pluto", weights=str(tmp_path / "pluto.pth"), precision="fp32")
    model.eval()
    with torch.no_grad():
        expected = model(encoder.transform(torch.from_numpy(tiles)))
    assert torch.allclose(encoder(tiles), expected, atol=1e-5)
    with pytest.raises(WeightsError, match="do not fit"):
        create_encoder("rudolfv", weights=str(tmp_path / "pluto.pth"))
    with pytest.raises(WeightsError, match="no weights file"):
        create_encoder("rudolfv", weights=str(tmp_path / "none.pth"))


# --- conversions --------------------------------------------------------------------------------


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(1, 4)
        self.tied = self.norm.weight


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wrapped_model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
        self.squeezer = Inner()
        self.hook = print


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/wsipipe-converted-evil",)


def test_whole_modules_give_their_tensors_without_being_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = Outer()
    model.evil = Evil()
    torch.save(model, tmp_path / "encoder.pt")
    # The classes are gone, as the makers' package is on the user's machine.
    code = convert(["pickled", str(tmp_path / "encoder.pt"), str(tmp_path / "out.safetensors")])
    assert code == 0
    assert not Path("/tmp/wsipipe-converted-evil").exists()
    converted = load_file(tmp_path / "out.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(converted[key], value), key


def test_converted_tissue_concepts_loads(tmp_path: Path, tiles) -> None:
    from torchvision.models import swin_v2_t

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped_model = swin_v2_t(weights=None)
            del self.wrapped_model.head

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Wrapper()

    class Squeezer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.GroupNorm(1, 768)

    # Pickling needs classes that can be found; the reader must not.
    module = sys.modules[__name__]
    for cls in (Wrapper, Encoder, Squeezer):
        cls.__qualname__ = cls.__name__
        setattr(module, cls.__name__, cls)
    torch.save(Encoder(), tmp_path / "encoder.pt")
    torch.save(Squeezer(), tmp_path / "squeezer.pt")
    for cls in (Wrapper, Encoder, Squeezer):
        delattr(module, cls.__name__)
    out = tmp_path / "tc.safetensors"
    inputs = [str(tmp_path / "encoder.pt"), str(tmp_path / "squeezer.pt")]
    assert convert(["pickled", *inputs, str(out)]) == 0
    encoder = create_encoder("tissue-concepts", weights=str(out), precision="fp32")
    assert encoder(tiles[:1]).shape == (1, 768)
    with pytest.raises(WeightsError, match="can run code"):
        create_encoder("tissue-concepts", weights=inputs[0])


def test_what_cannot_be_converted_is_told(tmp_path: Path, capsys) -> None:
    text = tmp_path / "x.pt"
    text.write_text("hello")
    assert convert(["pickled", str(text), str(tmp_path / "o.safetensors")]) == 3
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()


def test_remedis_variables_become_timms() -> None:
    """BiT's published names (of its npz files and SavedModels) against timm's whole key set."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("resnetv2_50x1_bit", num_classes=0)
    variables: dict[str, np.ndarray] = {"global_step": np.zeros(())}
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        parts = key.split(".")
        if parts[0] == "stages":
            unit = f"resnet/block{int(parts[1]) + 1}/unit{int(parts[3]) + 1:02d}/"
            if parts[4] == "downsample":
                name = f"{unit}a/proj/standardized_conv2d/kernel"
            elif parts[4].startswith("conv"):
                name = f"{unit}{'abc'[int(parts[4][-1]) - 1]}/standardized_conv2d/kernel"
            else:
                kind = {"weight": "gamma", "bias": "beta"}[parts[5]]
                name = f"{unit}{'abc'[int(parts[4][-1]) - 1]}/group_norm/{kind}"
        elif parts[0] == "stem":
            name = "resnet/root_block/standardized_conv2d/kernel"
        else:
            name = f"resnet/group_norm/{ {'weight': 'gamma', 'bias': 'beta'}[parts[1]] }"
        if len(shape) == 4:
            shape = (shape[2], shape[3], shape[1], shape[0])
        variables[name] = np.zeros(shape, np.float32)
    state = timm_names(variables)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in state.items()} == wanted
    with pytest.raises(WeightsError, match="dense/kernel"):
        timm_names({**variables, "dense/kernel": np.zeros((2, 2))})


def test_remedis_without_tensorflow_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert convert(["remedis", str(tmp_path), str(tmp_path / "o.safetensors")]) == 3
    assert "pip install tensorflow" in capsys.readouterr().err
