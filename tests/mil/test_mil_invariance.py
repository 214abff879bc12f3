"""Packed, padded and single bags are one and the same; what the MIL assumption asks of a model."""

from __future__ import annotations

import pytest
import torch

from wsipipe.errors import ConfigError
from wsipipe.mil.registry import aggregator_class, create_aggregator, list_aggregators

NAMES = list_aggregators()
DIM = 24
SMALL = {
    "transmil": {"landmarks": 8},
    "transmil-varlen": {"landmarks": 8},
    "rrt": {"regions": 2, "kernel": 3},
    "ilra": {"rank": 4},
    "panther": {"prototypes": 3, "eps": 0.1},
}


def _model(name: str, n_classes: int = 3):
    torch.manual_seed(0)
    model = create_aggregator(name, in_dim=DIM, n_classes=n_classes, **SMALL.get(name, {}))
    return model.double().eval() if name not in ("transmil", "panther") else model.eval()


def _bags(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, DIM, generator=generator) for n in lengths]


def _padded(bags: list[torch.Tensor], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, bags)) + 2
    x = torch.full((len(bags), longest, DIM), fill)
    mask = torch.zeros(len(bags), longest, dtype=torch.bool)
    for i, bag in enumerate(bags):
        x[i, : len(bag)], mask[i, : len(bag)] = bag, True
    return x, mask


def _gradient(model, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads).clone()


def _trainable(model) -> bool:
    return any(True for _ in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_padded_equals_one_at_a_time(name):
    model, bags = _model(name), _bags(7, 1, 30, 3)
    weights = torch.randn(len(bags), 3, generator=torch.Generator().manual_seed(2))
    single = [model(b[None]) for b in bags]
    alone = torch.cat([o.logits for o in single])
    if not _trainable(model):  # nearest neighbours: nothing to differentiate
        torch.testing.assert_close(model.forward_bags(bags).logits, alone)
        return
    grad_alone = _gradient(model, (alone * weights).sum())
    packed = model.forward_bags(bags)
    grad_packed = _gradient(model, (packed.logits * weights).sum())
    x, mask = _padded(bags, float("nan"))
    padded = model(x, mask)
    grad_padded = _gradient(model, (padded.logits * weights).sum())
    for logits in (packed.logits, padded.logits):
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    scale = grad_alone.abs().max()
    for grad in (grad_packed, grad_padded):
        assert (grad - grad_alone).abs().max() <= 1e-5 * max(1.0, float(scale))
    if padded.attention is not None:
        assert padded.attention.shape == mask.shape
        assert (padded.attention[~mask] == 0).all()
        torch.testing.assert_close(
            padded.attention.sum(dim=1), torch.ones_like(padded.attention[:, 0])
        )
        torch.testing.assert_close(padded.attention[mask], packed.attention)


@pytest.mark.parametrize("name", NAMES)
def test_a_companion_in_the_batch_changes_nothing(name):
    model, (a, b, c) = _model(name), _bags(9, 5, 40)
    with torch.no_grad():
        first = model.forward_bags([a, b]).logits[0]
        second = model.forward_bags([a, c * 100]).logits[0]
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_duplication_matter_only_where_declared(name):
    model, (bag,) = _model(name), _bags(12)
    cls, _ = aggregator_class(name)
    shuffled = bag[torch.randperm(12, generator=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        plain, moved, twice = (
            model(b[None]).logits for b in (bag, shuffled, torch.cat([bag, bag]))
        )
    if not cls.order_matters and not name.startswith("dtfd"):
        torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)
    if cls.duplication_invariant:
        torch.testing.assert_close(twice, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_any_number_of_classes_and_bags_of_one_tile_train(name, n_classes):
    torch.manual_seed(0)
    model = create_aggregator(name, in_dim=DIM, n_classes=n_classes, **SMALL.get(name, {})).train()
    out = model.forward_bags(_bags(1, 2, 11))
    assert out.logits.shape == (3, n_classes)
    assert torch.isfinite(out.logits).all()
    if not _trainable(model):
        return
    out.logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_streaming_a_bag_in_chunks_equals_the_whole(name):
    model, (bag,) = _model(name), _bags(50)
    with torch.no_grad():
        whole, streamed = model(bag[None]), model.forward_chunks(bag.numpy(), chunk=7)
    torch.testing.assert_close(streamed.logits, whole.logits, atol=1e-5, rtol=1e-5)
    if whole.attention is not None:
        torch.testing.assert_close(streamed.attention, whole.attention[0], atol=1e-6, rtol=1e-5)


def test_half_precision_features_are_accepted():
    model, (bag,) = _model("abmil").float(), _bags(8)
    with torch.no_grad():
        assert torch.isfinite(model(bag.half()[None]).logits).all()


def test_the_default_is_gated_attention_of_the_documented_size():
    model = create_aggregator("abmil", in_dim=1024, n_classes=2)
    assert sum(p.numel() for p in model.parameters()) == 920_195
    out = model(torch.randn(2, 5, 1024), torch.ones(2, 5, dtype=torch.bool))
    assert out.logits.shape == (2, 2)
    assert out.attention.shape == (2, 5)


def test_wrong_names_settings_and_shapes_teach():
    with pytest.raises(ConfigError, match="Did you mean 'transmil'"):
        create_aggregator("transmill", in_dim=8)
    with pytest.raises(ConfigError, match="It has: hidden"):
        create_aggregator("abmil", in_dim=8, hiden=4)
    model = create_aggregator("abmil", in_dim=8)
    with pytest.raises(ConfigError, match="8-dimensional"):
        model(torch.zeros(1, 3, 9))
    with pytest.raises(ConfigError, match="empty"):
        model(torch.zeros(2, 3, 8), torch.tensor([[True] * 3, [False] * 3]))


def test_acmil_masks_only_while_training_and_never_the_last_tile():
    model = create_aggregator("acmil", in_dim=DIM, n_classes=2).train()
    torch.manual_seed(0)
    out = model.forward_bags(_bags(1, 20))
    assert out.penalty is not None
    assert torch.isfinite(out.logits).all()
    assert (out.attention[1:] == 0).sum() == 0
    first, second = (model.eval()(_bags(20)[0][None]).logits for _ in range(2))
    torch.testing.assert_close(first, second)
