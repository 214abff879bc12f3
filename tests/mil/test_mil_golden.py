"""Same weights, same output as the authors' own implementations (fixtures made with them)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.aggregators.panther import mixture_summary
from wsipipe.mil.importers import import_checkpoint, import_state
from wsipipe.mil.packing import Segments

# fixture, name of the reference output, our variant, tolerance relative to the largest logit
CASES = [
    ("abmil_gated_512_128_c2", "logits", None, 1e-5),
    ("clam_sb_small_c2", "logits", None, 1e-5),
    ("clam_mb_small_c3_subtyping", "logits", None, 1e-5),
    ("dsmil_c1", "bag_logits", None, 1e-5),
    ("dsmil_c2", "bag_logits", None, 1e-5),
    ("dtfd_c2_4groups_noshuffle", "slide_logits_AFS", "dtfd", 1e-5),
    ("dtfd_c2_4groups_noshuffle", "slide_logits_MaxS", "dtfd-maxs", 1e-5),
    ("dtfd_c2_4groups_noshuffle", "slide_logits_MaxMinS", "dtfd-maxmins", 1e-5),
    ("acmil_ga_5tok_c2", "slide_logits", None, 1e-5),
    ("ilra_r64_ln_c2", "logits", None, 1e-5),
    ("wikg_top6_c2", "logits", None, 1e-5),
    ("s4mil_c2", "logits", None, 1e-5),
    ("transmil_c2", "logits", None, 1e-4),
    ("rrt_epeg15_crmsa3_c2", "logits", None, 1e-4),
]


def _load(folder: Path, fixture: str) -> tuple[torch.Tensor, dict, dict]:
    x = torch.from_numpy(np.load(folder / "golden" / "x_300x1024.npy"))
    data = np.load(folder / "golden" / f"{fixture}.npz")
    weights = {k[3:]: torch.from_numpy(data[k]) for k in data.files if k.startswith("w::")}
    return x, weights, {k: data[k] for k in data.files if not k.startswith("w::")}


@pytest.mark.parametrize(("fixture", "output", "variant", "tolerance"), CASES)
def test_logits_equal_the_authors_code(mil_data, fixture, output, variant, tolerance):
    x, weights, reference = _load(mil_data, fixture)
    model = import_state(weights, **({"aggregator": variant} if variant else {}))
    with torch.no_grad():
        logits = model(x[None]).logits.numpy()
    wanted = reference[output].reshape(logits.shape)
    assert np.abs(logits - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


def test_attention_scores_equal_the_authors_code(mil_data):
    for fixture, rows in (("clam_sb_small_c2", 1), ("clam_mb_small_c3_subtyping", 3)):
        x, weights, reference = _load(mil_data, fixture)
        with torch.no_grad():
            out = import_state(weights)(x[None])
        np.testing.assert_allclose(out.extras["scores"].T.numpy(), reference["attn_raw"], atol=1e-5)
        assert out.extras["scores"].shape == (300, rows)
    x, weights, reference = _load(mil_data, "dsmil_c2")
    with torch.no_grad():
        out = import_state(weights)(x[None])
    np.testing.assert_allclose(out.extras["attention"].numpy(), reference["attn"], atol=1e-6)
    np.testing.assert_allclose(out.instance_logits[0], reference["inst_logits"], atol=1e-5)
    x, weights, reference = _load(mil_data, "acmil_ga_5tok_c2")
    with torch.no_grad():
        out = import_state(weights)(x[None])
    np.testing.assert_allclose(out.extras["scores"].T[None], reference["attn_raw"], atol=1e-5)
    np.testing.assert_allclose(out.extras["branch_logits"][0], reference["sub_logits"], atol=1e-5)
    x, weights, reference = _load(mil_data, "dtfd_c2_4groups_noshuffle")
    with torch.no_grad():
        out = import_state(weights)(x[None])
    np.testing.assert_allclose(out.extras["sub_logits"], reference["sub_logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("fixture", "label", "subtyping"),
    [("clam_sb_small_c2", 1, False), ("clam_mb_small_c3_subtyping", 2, True)],
)
def test_clam_instance_loss_equals_the_authors_code(mil_data, fixture, label, subtyping):
    x, weights, reference = _load(mil_data, fixture)
    model = import_state(weights, subtyping=subtyping, bag_weight=0.0)
    bags = Segments((300,), x.device)
    out = model.forward_packed(x, bags)
    loss = model.instance_loss(out, torch.tensor([label]), bags)
    assert loss.item() == pytest.approx(float(reference[f"inst_loss_label{label}_ce"]), abs=1e-5)


def test_panther_mixture_equals_the_authors_code(mil_data):
    x, _, reference = _load(mil_data, "panther_p16_em1_tau1_eps1")
    summary, share = mixture_summary(
        torch.nn.functional.normalize(x, dim=-1), torch.from_numpy(reference["prototypes"])
    )
    np.testing.assert_allclose(summary.numpy(), reference["repr_allcat"][0], atol=1e-5)
    np.testing.assert_allclose(share.numpy(), reference["qq"][0, :, :, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "in_dim", "n_classes"),
    [
        ("clam_sb_small_demo.pt", 1024, 2),
        ("dtfd_model.pth", 1024, 2),
        ("dsmil_c16_aggregator.pth", 512, 1),
        ("dsmil_tcga_aggregator.pth", 512, 2),
    ],
)
def test_trained_checkpoints_of_peers_import_and_predict(mil_data, name, in_dim, n_classes):
    path = mil_data / "ref_checkpoints" / name
    model = import_checkpoint(path)
    assert (model.in_dim, model.n_classes) == (in_dim, n_classes)
    x = torch.from_numpy(np.load(mil_data / "golden" / "x_300x1024.npy"))[:, :in_dim]
    with torch.no_grad():
        out = model(x[None])
    assert out.logits.shape == (1, n_classes)
    assert torch.isfinite(out.logits).all()
    # The imported numbers are the file's own: undo the renaming of one layer by shape and value.
    raw = torch.load(path, map_location="cpu", weights_only=True)
    first = raw.get("dim_reduction", raw)
    key = next(k for k in first if k.endswith(("fc1.weight", "0.weight")) and first[k].ndim == 2)
    assert any(torch.equal(first[key], p) for p in model.parameters())


def test_an_unknown_layout_and_a_pickle_are_refused(tmp_path):
    torch.save({"foo.weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="layout"):
        import_checkpoint(tmp_path / "x.pt")
    torch.save({"foo": Path("x")}, tmp_path / "y.pt")
    with pytest.raises(CorruptFileError, match="tensors only"):
        import_checkpoint(tmp_path / "y.pt")
