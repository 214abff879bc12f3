"""Labels, many or few: multi-task training (TissueConcepts) and FixMatch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.pretrain.methods.base import At, Method
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.views import ViewBatch

__all__ = ["FixMatch", "MultiTask", "label_tasks"]


class MultiTask(Method):
    """One encoder, one linear head a task; cross-entropy over ln(classes) (2409.03519).

    Dividing by ln(classes) makes an ignorant head cost 1 on every task. Terms of all tasks of a
    batch are added before the update.
    """

    min_batch = 1
    needs = ("label", "task")

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        self.tasks = label_tasks(classes)
        self.drop = nn.Dropout(recipe.loss.dropout)
        self.heads = nn.ModuleList(nn.Linear(self.student.out_dim, c) for c in self.tasks.values())

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        features = self.drop(self.student(batch.views[0]))
        label, task = batch.labels["label"], batch.labels["task"]
        loss = features.new_zeros((), dtype=torch.float32)
        right, seen = loss.new_zeros(()), loss.new_zeros(())
        for t, head in enumerate(self.heads):
            rows = (task == t) & (label >= 0)
            logits = head(features[rows]).float()
            # The sum over no rows is 0 and keeps the head in the graph.
            total = F.cross_entropy(logits, label[rows], reduction="sum")
            loss = loss + total / (rows.sum().clamp_min(1) * math.log(max(2, logits.shape[1])))
            right += (logits.argmax(dim=1) == label[rows]).sum()
            seen += rows.sum()
        return {"loss": loss, "accuracy": right / seen.clamp_min(1)}


class FixMatch(Method):
    """FixMatch (2001.07685): confident answers on weak views teach strong views.

    Rows with label −1 are unlabelled. The first global view is the weak one (`views.weak_first`).
    """

    min_batch = 2
    needs = ("label",)

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        self.head = nn.Linear(self.student.out_dim, next(iter(label_tasks(classes).values())))

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        o, label = self.recipe.loss, batch.labels["label"]
        weak, strong = self.head(self.student(torch.cat(batch.views))).float().chunk(2)
        known = label >= 0
        supervised = F.cross_entropy(weak[known], label[known], reduction="sum")
        supervised = supervised / known.sum().clamp_min(1)
        confidence, guess = weak.detach().softmax(dim=1).max(dim=1)
        sure = (confidence >= o.threshold) & ~known
        pseudo = F.cross_entropy(strong, guess, reduction="none") * sure
        unsupervised = pseudo.sum() / (~known).sum().clamp_min(1)
        return {
            "loss": supervised + o.weight * unsupervised,
            "supervised": supervised.detach(),
            "pseudo_labelled": sure.float().sum() / (~known).sum().clamp_min(1),
        }


def label_tasks(classes: dict[str, int] | None) -> dict[str, int]:
    """The tasks that labels describe.

    Raises:
        ConfigError: There are none, or one has fewer than two classes.
    """
    tasks = {name: count for name, count in (classes or {}).items() if count > 1}
    if not tasks or len(tasks) < len(classes or {}):
        raise ConfigError(
            "this recipe learns from labels: each task needs two classes at least.",
            "Give --tiles a folder with a subfolder a class, or a CSV with columns path, label "
            "(and task).",
        )
    return tasks
