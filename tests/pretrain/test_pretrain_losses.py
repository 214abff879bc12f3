"""Losses against golden values.

The numbers were computed in float64 with the methods' public reference code (DINO, DINOv2, MoCo v3,
MAE, solo-learn, open_clip) on f(shape, k) = sin(.01 i² + .37 i + k), i the flat index from 0.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightly")

from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss, NTXentLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn

from wsipipe.pretrain import losses
from wsipipe.pretrain.monitors import rankme


def f(*shape: int, k: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    i = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return torch.sin(0.01 * i**2 + 0.37 * i + k).reshape(shape).to(dtype)


def golden(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def _dino_views() -> tuple[torch.Tensor, torch.Tensor]:
    teacher = torch.cat([f(4, 32, k=1), f(4, 32, k=2)])
    student = torch.stack([f(4, 32, k=3 + i) for i in range(4)])
    return teacher, student


def test_dino_with_centring_over_two_steps() -> None:
    teacher, student = _dino_views()
    targets = losses.TeacherTargets(32).double()
    for value in (15.298856104305134, 15.268224316894564):
        t = targets(teacher, 0.07).view(2, 4, 32)
        assert losses.cross_view_loss(t, student).item() == golden(value)


def test_dino_centring_equals_lightly() -> None:
    teacher, student = _dino_views()
    targets, reference = losses.TeacherTargets(32).double(), DINOLoss(32).double()
    for _ in range(3):
        ours = losses.cross_view_loss(targets(teacher, 0.05).view(2, 4, 32), student)
        theirs = reference(list(teacher.view(2, 4, 32)), list(student), teacher_temp=0.05)
        # lightly keeps its temperature as a float32 tensor.
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_dino_with_sinkhorn() -> None:
    teacher, student = _dino_views()
    t = losses.TeacherTargets(32, "sinkhorn").double()(teacher, 0.07).view(2, 4, 32)
    assert losses.cross_view_loss(t, student).item() == golden(14.78333751605069)


def test_sinkhorn_equals_lightly_and_survives_logits_that_overflow() -> None:
    logits = f(12, 16, k=0.2)
    torch.testing.assert_close(
        losses.sinkhorn(logits, 0.07), lightly_sinkhorn(logits, 3, 0.07), rtol=1e-9, atol=1e-12
    )
    huge = f(12, 16, k=0.2, dtype=torch.float32) * 1e3
    assert not torch.isfinite(lightly_sinkhorn(huge, 3, 0.07)).all()  # what is guarded against
    q = losses.sinkhorn(huge, 0.07)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(1), torch.ones(12))


def _ibot() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = (torch.arange(128) % 3 == 0).view(8, 4, 4)
    mask[2] = False
    assert mask.sum() == 38
    return f(38, 32, k=0.9), f(38, 32, k=0.5), mask


def test_ibot_on_masked_patches() -> None:
    teacher, student, mask = _ibot()
    targets = losses.TeacherTargets(32).double()
    loss = losses.masked_patch_loss(targets(teacher, 0.07), student, mask)
    assert loss.item() == golden(2.1837472518718988)
    reference = IBOTPatchLoss(32).double()(teacher, student, mask, teacher_temp=0.07)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)


def test_an_empty_mask_gives_zero_and_does_not_poison_the_centre() -> None:
    targets = losses.TeacherTargets(32)
    before = targets(f(6, 32, k=1, dtype=torch.float32), 0.07)
    center = targets.center.clone()
    empty, mask = torch.zeros(0, 32), torch.zeros(2, 4, 4, dtype=torch.bool)
    loss = losses.masked_patch_loss(targets(empty, 0.07), empty, mask)
    assert loss.item() == 0.0
    assert before.shape == (6, 32)
    torch.testing.assert_close(targets.center, center)


def test_koleo() -> None:
    assert KoLeoLoss()(f(16, 24, k=0.3)).item() == golden(0.11850888457549091)


def test_kde_without_and_with_self() -> None:
    x = f(16, 24, k=0.3)
    assert losses.kde_loss(x).item() == golden(0.93661710845989)
    with_self = losses.kde_loss(x, include_self=True).item()
    assert with_self == golden(2.487344957090498)


def test_minimising_kde_spreads_the_features() -> None:
    torch.manual_seed(0)
    x = (torch.randn(32, 8) + 2).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.1)

    def cosine() -> float:
        z = F.normalize(x, dim=1)
        return ((z @ z.T).sum() - 32).item() / (32 * 31)

    before = cosine()
    for _ in range(100):
        optimiser.zero_grad()
        losses.kde_loss(x).backward()
        optimiser.step()
    assert before > 0.7
    assert cosine() < 0.1


def test_simclr_and_moco_v2_of_lightly() -> None:
    a, b = f(8, 16, k=0.1), f(8, 16, k=0.8)
    assert NTXentLoss(0.5)(a, b).item() == golden(1.4059746405968723)
    bank = NTXentLoss(0.2, memory_bank_size=(64, 16)).double()
    bank.memory_bank.bank = F.normalize(f(16, 64, k=0.4), dim=0).T.contiguous()
    assert bank(a, b).item() == golden(1.3327467885220035)


def test_moco_v3_one_and_both_directions() -> None:
    a, b = f(8, 16, k=0.1), f(8, 16, k=0.8)
    assert losses.moco_v3_loss(a, b).item() == golden(0.0649006388424365)
    both = losses.moco_v3_loss(a, b) + losses.moco_v3_loss(b, a)
    assert both.item() == golden(0.13030180814120282)
    assert losses.symmetric_moco_v3_loss(a, b, a, b).item() == golden(0.13030180814120282)


def test_clip() -> None:
    a, b = f(8, 16, k=0.1), f(8, 16, k=0.8)
    assert losses.clip_loss(a, b, 1 / 0.07).item() == golden(0.0004488246741935765)


def test_mae_norm_pix() -> None:
    mask = (torch.arange(32) % 4 != 0).view(2, 16)
    loss = losses.norm_pix_loss(f(2, 16, 48, k=0.2), f(2, 16, 48, k=0.7) ** 3, mask)
    assert loss.item() == golden(0.33639253638615657)


def test_byol_is_zero_for_equal_and_four_for_opposite() -> None:
    a = f(8, 16, k=0.1)
    assert losses.byol_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-12)
    assert losses.byol_loss(a, -a).item() == pytest.approx(4)


def test_fourier_ignores_shifts_and_sees_blur() -> None:
    image = f(2, 3, 16, 16, k=0.1)
    shifted = image.roll((3, 5), dims=(2, 3))
    assert losses.fourier_loss(shifted, image).item() == pytest.approx(0, abs=1e-6)
    blurred = F.avg_pool2d(image, 3, 1, 1)
    low = losses.fourier_loss(blurred, image, low=1, high=0)
    high = losses.fourier_loss(blurred, image, low=0, high=1)
    assert high > low > 0


def test_rankme_raw_and_centred() -> None:
    x = f(16, 24, k=0.3)
    assert rankme(x, center=False) == golden(13.912962883847952)
    assert rankme(x, center=True) == golden(13.122539933484067)
