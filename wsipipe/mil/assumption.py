"""Algorithmic unit tests of the MIL assumption (Raff and Holt, NeurIPS 2023; arXiv:2310.17867).

A bag is positive because of what is in it, never because of what is missing. Models have one
output, the evidence for "positive": with one for each class even a maximum over tiles can learn
what makes a bag negative. Each test hides a
shortcut ("poison") in the negative training bags and in the positive test bags. A model that says
"negative, because of the poison" falls below AUC 0.5; one that looks for positive evidence keeps
its AUC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.mil.metrics.classification import auroc
from wsipipe.mil.packing import pack
from wsipipe.mil.registry import create_aggregator

__all__ = ["TESTS", "TestResult", "selftest"]

DIM = 16
Bags = tuple[list[NDArray[np.float32]], NDArray[np.bool_]]
Rng = np.random.Generator


@dataclass(frozen=True)
class TestResult:
    """One model on one test.

    Attributes:
        train_auc: On fresh bags poisoned as in training: has the model learned anything?
        test_auc: On bags with the poison on the other side.
        verdict: "pass", "FAIL", or "idle" where nothing was learned.
    """

    __test__ = False  # pytest: not a test class

    aggregator: str
    test: str
    train_auc: float
    test_auc: float
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _negatives(rng: Rng) -> NDArray[np.float64]:
    return rng.normal(0, 1, (int(rng.integers(8, 20)), DIM))


def _positive_concept(rng: Rng, which: int = 0) -> NDArray[np.float64]:
    """One to three instances of a concept: a shifted cloud in its own direction."""
    x = rng.normal(0, 1, (int(rng.integers(1, 4)), DIM))
    x[:, 4 * which : 4 * which + 4] += 3
    return x


def _poison(rng: Rng) -> NDArray[np.float64]:
    return rng.normal(-10, 0.1, (1, DIM))


def _finish(parts: list[NDArray[np.float64]], rng: Rng) -> NDArray[np.float32]:
    x = np.concatenate(parts).astype(np.float32)
    return x[rng.permutation(len(x))]


def single_concept(n: int, poisoned_positive: bool, rng: Rng) -> Bags:
    """Positive: holds the concept. Poison: one far instance."""
    bags, y = [], np.arange(n) % 2 == 1
    for positive in y:
        parts = [_negatives(rng)]
        if positive:
            parts.append(_positive_concept(rng))
        if positive == poisoned_positive:
            parts.append(_poison(rng))
        bags.append(_finish(parts, rng))
    return bags, y


def multi_concept(n: int, poisoned_positive: bool, rng: Rng) -> Bags:
    """Positive: holds both of two concepts. Negative bags hold one of them at most."""
    bags, y = [], np.arange(n) % 2 == 1
    for i, positive in enumerate(y):
        parts = [_negatives(rng)]
        if positive:
            parts += [_positive_concept(rng, 0), _positive_concept(rng, 1)]
        elif i % 4 < 2:
            parts.append(_positive_concept(rng, int(rng.integers(2))))
        if positive == poisoned_positive:
            parts.append(_poison(rng))
        bags.append(_finish(parts, rng))
    return bags, y


def false_frequency(n: int, poisoned_positive: bool, rng: Rng) -> Bags:
    """Positive: holds the concept, however often.

    In training positive bags hold many instances and negative ones a single lookalike; in testing
    negative bags hold many lookalikes and positive ones one instance: a count is no concept.
    """
    bags, y = [], np.arange(n) % 2 == 1
    for positive in y:
        many = positive != poisoned_positive
        times = int(rng.integers(6, 10)) if many else 1
        x = rng.normal(0, 0.5, (times, DIM))
        # The lookalike shares half of the concept's directions.
        x[:, : (4 if positive else 2)] += 3
        bags.append(_finish([_negatives(rng), x], rng))
    return bags, y


TESTS: dict[str, Callable[[int, bool, Rng], Bags]] = {
    "single-concept": single_concept,
    "multi-concept": multi_concept,
    "false-frequency": false_frequency,
}


def selftest(
    aggregators: Sequence[str], *, epochs: int = 20, bags: int = 200, seed: int = 0
) -> list[TestResult]:
    """Run all tests on all named models.

    Returns:
        One result a model and test.
    """
    if epochs < 1 or bags < 8 or seed < 0:
        raise ConfigError(
            "The self-test needs --epochs >= 1, --bags >= 8 and --seed >= 0, not "
            f"{epochs}, {bags}, {seed}."
        )
    out = []
    for name in aggregators:
        for test, make in TESTS.items():
            rng = np.random.default_rng(seed)
            x, y = make(bags, False, rng)
            model = _fit(name, x, y, epochs, seed)
            train_auc = _auc(model, *make(bags, False, rng))
            test_auc = _auc(model, *make(bags, True, rng))
            verdict = "idle" if train_auc < 0.7 else "pass" if test_auc > 0.5 else "FAIL"
            out.append(TestResult(name, test, round(train_auc, 4), round(test_auc, 4), verdict))
    return out


def _fit(
    name: str, x: list[NDArray[np.float32]], y: NDArray[np.bool_], epochs: int, seed: int
) -> Any:
    outside = torch.get_rng_state()
    torch.manual_seed(seed)
    model: Any = create_aggregator(name, in_dim=DIM, n_classes=1).train()
    if hasattr(model, "fit_prototypes"):
        model.fit_prototypes(torch.from_numpy(np.concatenate(x)), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-3)
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(y.astype(np.float32))
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(x)), max(1, len(x) // 8)):
            packed, bags = pack([torch.from_numpy(x[i]) for i in rows])
            out = model.forward_packed(packed, bags)
            truth = labels[torch.from_numpy(rows)]
            loss = model.bag_weight * loss_of(out.logits[:, 0], truth)
            for deep in out.deep:
                loss = loss + deep.weight * loss_of(deep.logits[:, 0], truth[deep.bag])
            # The one class is "positive": its tiles are found in positive bags only.
            extra = model.instance_loss(out, truth.long() - 1, bags)
            for more in (extra, out.penalty):
                loss = loss if more is None else loss + more
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.set_rng_state(outside)
    return model.eval()


@torch.no_grad()
def _auc(model: Any, x: list[NDArray[np.float32]], y: NDArray[np.bool_]) -> float:
    logits = model.forward_bags([torch.from_numpy(b) for b in x]).logits.double().numpy()
    return float(auroc(logits[:, 0], y, np.ones((1, len(y))))[0])
