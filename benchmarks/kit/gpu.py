"""What a run on a GPU is held against."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np


def bare_gpu_rate(name: str, batch: int = 256, seconds: float = 15.0) -> float:
    """Tiles/s of the compiled model alone, on pinned tiles, one batch launched ahead."""
    import torch

    from wsipipe.encoders import create_encoder

    encoder = create_encoder(name, device="cuda", precision="bf16")
    encoder.network = torch.compile(encoder.network)
    noise = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    tiles = torch.from_numpy(noise).pin_memory()
    for _ in range(5):
        encoder.start(tiles).result()
    begun, count, ahead = time.perf_counter(), 0, encoder.start(tiles)
    while time.perf_counter() - begun < seconds:
        following = encoder.start(tiles)
        ahead.result()
        ahead, count = following, count + batch
    return count / (time.perf_counter() - begun)


def waited(out: Path) -> float:
    """Share of its time that the device waited on reading in the latest run into `out`."""
    lines = [line for file in (out / "events").glob("*.jsonl") for line in file.open()]
    ends = [event for line in lines if (event := json.loads(line))["event"] == "run_over"]
    return float(ends[-1]["device_waited"])
