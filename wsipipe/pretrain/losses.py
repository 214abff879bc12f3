"""The losses that lightly does not have, or has in a form that can overflow or poison a state.

NT-Xent (SimCLR, MoCo v2), KoLeo and the MAE helpers come from lightly. What is here is checked
against values computed with the methods' reference code (tests/pretrain/test_pretrain_losses.py).

Shapes: B rows (tiles), K prototypes, D features, V views. All functions keep the dtype they get.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.pretrain.distributed import (
    all_reduce_max,
    all_reduce_sum,
    gather_rows,
    rank,
)

__all__ = [
    "TeacherTargets",
    "byol_loss",
    "clip_loss",
    "cross_view_loss",
    "fourier_loss",
    "kde_loss",
    "masked_patch_loss",
    "moco_v3_loss",
    "norm_pix_loss",
    "sinkhorn",
    "symmetric_moco_v3_loss",
]


@torch.no_grad()
def sinkhorn(logits: Tensor, temp: float, iterations: int = 3) -> Tensor:
    """Balanced soft assignments of rows to prototypes (SwAV 2006.09882, as DINOv2 uses them).

    In the log domain: exp(logits/temp) overflows float32 beyond |logits|/temp = 88, and a
    prototype whose weights all underflow would give 0/0.

    Args:
        logits: (B, K) of this process; all processes take part.
        temp: Teacher temperature.
        iterations: Rounds of normalising prototypes, then rows.

    Returns:
        (B, K), rows sum to 1.
    """
    log_q = logits / temp
    for _ in range(iterations):
        top = all_reduce_max(log_q.amax(dim=0, keepdim=True))
        total = all_reduce_sum((log_q - top).exp().sum(dim=0, keepdim=True))
        log_q = log_q - (top + total.log())
        # Rows sum to 1, not to 1/B: the common factor cancels, and processes may hold different
        # numbers of rows (masked patches).
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


class TeacherTargets(nn.Module):
    """Turns teacher logits into target distributions, without letting one prototype win.

    Args:
        k: Number of prototypes.
        mode: "centering" (subtract a running mean, DINO 2104.14294) or "sinkhorn".
        momentum: Of the running mean.
    """

    center: Tensor

    def __init__(self, k: int, mode: str = "centering", momentum: float = 0.9) -> None:
        super().__init__()
        if mode not in ("centering", "sinkhorn", "none"):
            raise ValueError(f"unknown mode {mode!r}: centering, sinkhorn or none")
        self.mode, self.momentum = mode, momentum
        self.register_buffer("center", torch.zeros(1, k))

    @torch.no_grad()
    def forward(self, logits: Tensor, temp: float) -> Tensor:
        """(N, K) logits -> (N, K) probabilities; updates the centre afterwards, as DINO does.

        With N = 0 on every process the centre stays as it is (a mean of nothing is nan, for ever).
        """
        if self.mode == "sinkhorn":
            return sinkhorn(logits, temp)
        targets = F.softmax((logits - self.center) / temp, dim=-1)
        if self.mode == "centering":
            count = all_reduce_sum(torch.tensor(float(logits.shape[0]), device=logits.device))
            total = all_reduce_sum(logits.sum(dim=0, keepdim=True).to(self.center.dtype))
            if count > 0:
                self.center.mul_(self.momentum).add_(total / count, alpha=1 - self.momentum)
        return targets


def cross_view_loss(targets: Tensor, student: Tensor, student_temp: float = 0.1) -> Tensor:
    """Cross-entropy between every teacher view and every other student view (DINO).

    Args:
        targets: (T, B, K) probabilities of the T global views.
        student: (S, B, K) logits; its first T views are the same global views.
        student_temp: Temperature of the student.

    Returns:
        Mean over the T·S − T pairs of different views and over B.
    """
    log_p = F.log_softmax(student / student_temp, dim=-1)
    pairs = -torch.einsum("tbk,sbk->ts", targets, log_p)
    same = torch.zeros_like(pairs, dtype=torch.bool).fill_diagonal_(True)
    n_pairs = pairs.numel() - int(same.sum())
    if n_pairs == 0:
        raise ValueError("a cross-view loss needs two views at least")
    return pairs.masked_fill(same, 0.0).sum() / (n_pairs * targets.shape[1])


def masked_patch_loss(
    targets: Tensor, student: Tensor, mask: Tensor, student_temp: float = 0.1
) -> Tensor:
    """Cross-entropy on masked patches (iBOT 2111.07832), each image weighing the same.

    Args:
        targets: (M, K) teacher probabilities of the masked patches, in the order of `mask`.
        student: (M, K) student logits.
        mask: (B, H, W) bool with M ones.
        student_temp: Temperature of the student.

    Returns:
        Sum over images of the mean over their masked patches, divided by B; 0 if nothing is masked.
    """
    per_image = mask.flatten(1).sum(dim=1).clamp(min=1)
    weight = (1.0 / per_image)[:, None, None].expand_as(mask)[mask].to(student.dtype)
    rows = -(targets * F.log_softmax(student / student_temp, dim=-1)).sum(dim=-1)
    return (rows * weight).sum() / mask.shape[0]


def kde_loss(features: Tensor, kappa: float = 5.0, include_self: bool = False) -> Tensor:
    """Log density of the features under a von Mises-Fisher kernel: minimised, it spreads them out.

    L = mean_i [ logsumexp_{j != i}(kappa x_i.x_j) − log(n − 1) ] with x L2-normalised (Virchow2
    2408.00738, Appendix; Wang & Isola 2005.10242). Two public reimplementations return −log density
    and add it with a positive weight, which pulls features together: the sign here is the one that
    spreads (the mean pairwise cosine falls when it is minimised).

    Args:
        features: (B, D) of this process; the density is that of all processes' rows.
        kappa: Concentration of the kernel.
        include_self: Also count j = i (a constant e^kappa inside the sum), mean over n.
    """
    x = F.normalize(features, dim=-1)
    everyone = gather_rows(x)
    similarity = kappa * x @ everyone.T
    n = everyone.shape[0]
    if include_self:
        return (similarity.logsumexp(dim=1) - math.log(n)).mean()
    if n < 2:
        raise ValueError("a density needs two tiles at least")
    own = torch.arange(x.shape[0], device=x.device)
    hide = torch.zeros_like(similarity, dtype=torch.bool)
    hide[own, own + rank() * x.shape[0]] = True
    return (similarity.masked_fill(hide, -torch.inf).logsumexp(dim=1) - math.log(n - 1)).mean()


def moco_v3_loss(query: Tensor, key: Tensor, temp: float = 0.2) -> Tensor:
    """InfoNCE of queries against all processes' keys, times 2·temp (MoCo v3 2104.02057)."""
    query, key = F.normalize(query, dim=1), gather_rows(F.normalize(key, dim=1))
    labels = torch.arange(query.shape[0], device=query.device) + rank() * query.shape[0]
    return 2 * temp * F.cross_entropy(query @ key.T / temp, labels)


def symmetric_moco_v3_loss(
    q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temp: float = 0.2
) -> Tensor:
    """Both directions: each view's prediction against the other view's momentum key."""
    return moco_v3_loss(q1, k2, temp) + moco_v3_loss(q2, k1, temp)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 − 2·cosine, mean over rows; no gradient into the target (BYOL 2006.07733)."""
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1).mean()


def clip_loss(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy of L2-normalised pairs over all processes (CLIP 2103.00020)."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    labels = torch.arange(image.shape[0], device=image.device) + rank() * image.shape[0]
    to_text = F.cross_entropy(scale * image @ gather_rows(text).T, labels)
    to_image = F.cross_entropy(scale * text @ gather_rows(image).T, labels)
    return (to_text + to_image) / 2


def norm_pix_loss(prediction: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error on masked patches, each patch's pixels standardised (MAE 2111.06377).

    Args:
        prediction: (B, N, P) predicted patch pixels.
        pixels: (B, N, P) true patch pixels (`lightly.models.utils.patchify`).
        mask: (B, N) bool, True = masked and to be judged.
    """
    mean = pixels.mean(dim=-1, keepdim=True)
    var = pixels.var(dim=-1, keepdim=True)
    target = (pixels - mean) / (var + 1e-6).sqrt()
    return ((prediction - target) ** 2).mean(dim=-1)[mask].mean()


def fourier_loss(prediction: Tensor, target: Tensor, low: float = 1.0, high: float = 1.0) -> Tensor:
    """Mean absolute difference of the amplitude spectra of images ("PLUTO-style").

    PLUTO (2405.07905) weighs low and high frequencies apart without telling how; here the two
    weights act inside and outside half the Nyquist radius.

    Args:
        prediction: (B, C, H, W).
        target: (B, C, H, W).
        low: Weight inside the radius.
        high: Weight outside it.
    """
    difference = (_amplitude(prediction) - _amplitude(target)).abs()
    fy = torch.fft.fftfreq(prediction.shape[-2], device=prediction.device)[:, None]
    fx = torch.fft.rfftfreq(prediction.shape[-1], device=prediction.device)[None, :]
    inside = (fy**2 + fx**2).sqrt() < 0.25
    return (difference * torch.where(inside, low, high)).mean()


def _amplitude(images: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(images.float(), norm="ortho")
    # |z| has no gradient at 0.
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-12)
