"""What this machine's processor is good at."""

from __future__ import annotations

__all__ = ["cpu_has_bf16"]


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; elsewhere bf16 is emulated and slower."""
    import torch

    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # torch < 2.10
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
