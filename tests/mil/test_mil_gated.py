"""The blockwise gated pooling and its derivative equal the plain modules; dropout by units."""

from __future__ import annotations

import pytest
import torch

from wsipipe.mil.aggregators import gated
from wsipipe.mil.packing import pack
from wsipipe.mil.registry import create_aggregator


def _model(**settings):
    torch.manual_seed(0)
    return create_aggregator("abmil", in_dim=12, hidden=10, attention_dim=6, **settings)


def _packed(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return pack([torch.randn(n, 12, generator=generator).to(dtype) for n in (5, 1, 17)])


def _step(model, x, bags):
    model.zero_grad()
    out = model.forward_packed(model.cast(x), bags)
    # Logits, scores and attention all carry gradient, as losses and penalties may ask.
    loss = out.logits.square().sum() + out.extras["scores"].sin().sum()
    (loss + out.attention.square().sum()).backward()
    return out, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("train", [True, False])
def test_blocks_equal_plain_modules_in_output_and_gradient(monkeypatch, bias, dtype, train):
    monkeypatch.setattr(gated, "_BLOCK", 4)
    model, (x, bags) = _model(bias=bias).train(train), _packed(dtype)
    torch.manual_seed(3)
    out, grads = _step(model, x, bags)
    assert model.cast(x) is x
    monkeypatch.setattr(type(model), "_in_blocks", lambda *_: False)
    torch.manual_seed(3)
    plain, wanted = _step(model, x, bags)
    torch.testing.assert_close(out.logits, plain.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out.attention, plain.attention, atol=1e-6, rtol=1e-5)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_dropout_takes_a_quarter_of_the_units_of_all_tiles_and_nothing_in_use():
    model, (x, bags) = _model().train(), _packed()
    torch.manual_seed(4)
    _, grads = _step(model, x, bags)
    reduce = dict(zip([n for n, _ in model.named_parameters()], grads, strict=True))
    untouched = (reduce["head.weight"] == 0).all(dim=0).sum()
    assert untouched == 10 - round(10 * 0.75)
    model.eval()
    first, second = (model.forward_packed(x, bags).logits for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_the_mean_over_dropped_units_is_the_linear_response():
    """Kept units are scaled up: in a linear layer the expectation is that without dropout."""
    model, (x, bags) = _model().train(), _packed()
    with torch.no_grad():
        for layer in (model.score.V, model.score.U, model.score.w):
            layer.weight.zero_()  # even attention: the rest is linear in the dropped units
    torch.manual_seed(5)
    with torch.no_grad():
        drawn = torch.stack([model.forward_packed(x, bags).logits for _ in range(4000)]).mean(0)
        exact = model.eval().forward_packed(x, bags).logits
    torch.testing.assert_close(drawn, exact, atol=0.03 * float(exact.abs().max()), rtol=0)


def test_dropout_by_tile_can_be_had():
    model, (x, bags) = _model(tile_dropout=True).train(), _packed()
    torch.manual_seed(6)
    _, grads = _step(model, x, bags)
    assert not any((g == 0).all() for g in grads)
    first, second = (model.forward_packed(x, bags).logits for _ in range(2))
    assert not torch.equal(first, second)
