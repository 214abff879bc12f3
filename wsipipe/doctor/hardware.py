"""Processors, memory, accelerators."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from wsipipe.doctor.finding import Finding, human_bytes
from wsipipe.embed.resources import available_cpus

_GROUP = "devices"
_LITTLE_MEMORY = 4e9


def processors() -> Iterator[Finding]:
    """Cores that may be used, after affinity, container quota and scheduler."""
    usable, installed = available_cpus(), os.cpu_count() or 1
    detail = f"{usable} usable of {installed}"
    if usable < installed:
        detail += " (affinity, container quota or scheduler)"
    yield Finding(_GROUP, "CPU cores", "good", detail)


def memory() -> Iterator[Finding]:
    """Memory that may be used, after the container's limit."""
    limit = _memory_bytes()
    if limit is None:
        return
    if limit < _LITTLE_MEMORY:
        yield Finding(
            _GROUP, "memory", "warning", human_bytes(limit),
            "Give the container or job 4 GB or more; large encoders need more.",
        )  # fmt: skip
    else:
        yield Finding(_GROUP, "memory", "good", human_bytes(limit))


def _memory_bytes() -> int | None:
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found, default=None)


def devices(*, quick: bool) -> Iterator[Finding]:
    """Accelerators that torch sees, and whether they compute."""
    if quick:
        if importlib.util.find_spec("torch") is None:
            yield Finding(_GROUP, "torch", "broken", "is not installed", "pip install torch")
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            _GROUP, "torch", "broken", f"does not load: {error}",
            "Install it anew for your system: see pytorch.org/get-started/locally",
        )  # fmt: skip
        return
    yield _cpu()
    found = False
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = True
        yield _cuda(index)
    if torch.backends.mps.is_available():
        found = True
        yield Finding(_GROUP, "mps", "good", "Apple GPU; --device mps")
    if not found:
        yield _no_accelerator(torch.version.cuda)


def _cpu() -> Finding:
    import torch

    from wsipipe.processor import cpu_has_bf16

    name = _cpu_name()
    fast = cpu_has_bf16()
    detail = f"{name}; torch {torch.__version__}, " + (
        "bf16 in hardware (used by default)" if fast else "no bf16 in hardware: fp32"
    )
    return Finding(_GROUP, "cpu", "good", detail)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"


def _cuda(index: int) -> Finding:
    import torch

    name = f"cuda:{index}"
    try:
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(256, 256, device=name)
        right = float((ones @ ones)[0, 0]) == 256.0
    except RuntimeError as error:
        return Finding(
            _GROUP, name, "broken", str(error).splitlines()[0],
            "Check the driver with nvidia-smi, or run with --device cpu.",
        )  # fmt: skip
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    detail = (
        f"{properties.name}, {human_bytes(free)} of {human_bytes(total)} free, {precision} by "
        f"default, CUDA {torch.version.cuda}"
    )
    if not right:
        return Finding(
            _GROUP, name, "broken", f"{detail}; it computes wrongly", "Leave this device out."
        )
    return Finding(_GROUP, name, "good", detail)


def _no_accelerator(built_for: str | None) -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding(_GROUP, "GPU", "note", "none: encoders run on the CPU")
    if built_for is None:
        return Finding(
            _GROUP, "GPU", "warning", "nvidia-smi is here, but torch is built for the CPU only",
            "Install torch for CUDA: see pytorch.org/get-started/locally",
        )  # fmt: skip
    return Finding(
        _GROUP, "GPU", "warning",
        f"nvidia-smi is here, but torch (CUDA {built_for}) sees no device",
        "Update the driver; in a container, start it with --gpus all; check CUDA_VISIBLE_DEVICES.",
    )  # fmt: skip
