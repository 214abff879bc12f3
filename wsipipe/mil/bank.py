"""The features of a cohort, held where they are fastest: device, memory, or mapped from disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.bags import BagFile, blocks_of, good_rows, open_rows
from wsipipe.mil.packing import rows_tensor

__all__ = ["FeatureBank", "all_finite", "check_settings", "file_digest"]


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2


def _default_budget(device: torch.device) -> int:
    share = int(0.4 * available_bytes())
    return share if device.type == "cuda" else min(share, 512 << 20)


def check_settings(files: Iterable[BagFile]) -> dict[str, Any]:
    """What all files say about encoder, mpp, tile size and dimension; refuses a mixture.

    Returns:
        The common settings, `dim` among them; a setting that no file states is absent.

    Raises:
        ConfigError: Files differ, naming two of them.
    """
    common: dict[str, tuple[Any, BagFile]] = {}
    for file in files:
        for key, value in {**file.settings, "dim": file.dim}.items():
            known = common.setdefault(key, (value, file))
            if known[0] != value:
                raise ConfigError(
                    f"Feature files are mixed: {key} is {known[0]!r} in {known[1].path} "
                    f"and {value!r} in {file.path}.",
                    "Train on features of one encoder, mpp and tile size: one folder of "
                    "OUT/features.",
                )
    return {key: value for key, (value, _) in common.items()}


def all_finite(rows: Any) -> bool:
    """No NaN or infinity in (N, D), in pieces."""
    for start in range(0, len(rows), 4096):
        part = rows_tensor(rows[start : start + 4096])
        # float32 sums of rows are finite exactly where all values are (|fp16| <= 65504).
        if not torch.isfinite(part.sum(dim=1, dtype=torch.float32)).all():
            return False
    return True


def file_digest(file: BagFile) -> str:
    """sha256 of the features' bytes: equal features are equal digests, in whatever layout."""
    digest = hashlib.sha256()
    rows = open_rows(file)
    for start in range(0, len(rows), 8192):
        digest.update(np.ascontiguousarray(rows[start : start + 8192]).data)
    return digest.hexdigest()


class FeatureBank:
    """Bags by slide id.

    Args:
        files: slide id -> file.
        device: Where models run.
        budget_bytes: What may be resident in memory; None = 40 % of what is available, and on a CPU
            at most 512 MB: beyond, mapped files in the page cache are read at the speed of memory
            (12 ms for 15,000 x 1,024 fp16) and the machine may take them back.
        cache: Folder for files that are one row a chunk and stay on disk: they are repacked there
            once, and mapped from then on.

    Attributes:
        tier: "device", "memory" or "mapped".
        dropped: slide id -> tiles left out because their pixels could not be read.
    """

    def __init__(
        self,
        files: Mapping[str, BagFile],
        *,
        device: torch.device | str = "cpu",
        budget_bytes: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.files = dict(files)
        self.device = torch.device(device)
        self.cache = cache
        self.dropped: dict[str, int] = {}
        self.bytes_read = 0
        self._resident: dict[str, Tensor] = {}
        self._mapped: dict[str, NDArray[Any]] = {}
        total = sum(f.nbytes for f in self.files.values())
        memory = _default_budget(self.device) if budget_bytes is None else budget_bytes
        self.tier = "memory" if total <= memory else "mapped"
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if total <= 0.6 * free:
                self.tier = "device"

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, slide_id: str) -> int:
        """Tiles of a slide, bad ones not counted once they are known."""
        return self.files[slide_id].rows - self.dropped.get(slide_id, 0)

    def array(self, slide_id: str) -> NDArray[Any]:
        """(N, D) as stored, mapped where possible, without bad tiles."""
        if slide_id not in self._mapped:
            file = self.files[slide_id]
            rows = self._repacked(file) if self._needs_repacking(file) else open_rows(file)
            good = good_rows(file)
            if good is not None:
                self.dropped[slide_id] = int((~good).sum())
                return rows[good]
            if not isinstance(rows, np.memmap):
                return rows  # in memory: keeping it would keep the whole cohort
            self._mapped[slide_id] = rows
        return self._mapped[slide_id]

    def get(self, slide_id: str) -> Tensor:
        """(N, D) tensor in the stored dtype, on the device of the tier."""
        if slide_id in self._resident:
            return self._resident[slide_id]
        tensor = self._tensor(self.array(slide_id))
        if self.tier == "mapped":
            return tensor
        if self.tier == "device":
            tensor = tensor.to(self.device)
        elif self.device.type == "cuda":
            tensor = tensor.pin_memory()
        self._resident[slide_id] = tensor
        return tensor

    def sample(self, slide_id: str, take: int, rng: np.random.Generator, block: int = 64) -> Tensor:
        """At most `take` tiles in runs of `block`; of a mapped file only their bytes are read."""
        if self.rows(slide_id) <= take:
            return self.get(slide_id)
        whole = self._resident.get(slide_id)
        if whole is None and self.tier != "mapped":
            whole = self.get(slide_id)
        if whole is not None:
            return torch.cat([whole[b] for b in blocks_of(len(whole), take, block, rng)])
        rows = self.array(slide_id)
        picked = np.concatenate([rows[b] for b in blocks_of(len(rows), take, block, rng)])
        self.bytes_read += picked.nbytes
        return torch.from_numpy(picked)

    def thin(self, slide_id: str, take: int) -> Tensor:
        """About `take` rows, evenly spaced; of a mapped file only these are read."""
        rows: Any = self.array(slide_id) if self.tier == "mapped" else self.get(slide_id)
        return rows_tensor(rows[:: max(1, len(rows) // take)])

    def check(self) -> list[str]:
        """Slides that hold NaN or infinite features in tiles that count as read."""
        bad = []
        for slide_id in self.files:
            rows: Any = self.array(slide_id) if self.tier == "mapped" else self.get(slide_id)
            if not all_finite(rows):
                bad.append(slide_id)
        return bad

    def moments(self, slide_ids: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) float32 over all tiles of these slides."""
        count, mean, m2 = 0, None, None
        for slide_id in slide_ids:
            x = self.get(slide_id).double()
            n = len(x)
            if n == 0:
                continue
            part = x.mean(dim=0)
            spread = (x - part).square().sum(dim=0)
            if mean is None or m2 is None:
                count, mean, m2 = n, part, spread
                continue
            delta = part - mean
            m2 = m2 + spread + delta.square() * (count * n / (count + n))
            mean = mean + delta * (n / (count + n))
            count += n
        if mean is None or m2 is None:
            raise ConfigError("No tiles to standardise by.")
        std = (m2 / count).sqrt()
        # A constant column carries nothing; dividing by its spread would carry noise.
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, torch.ones_like(std))
        return mean.float(), std.float()

    def _tensor(self, rows: NDArray[Any]) -> Tensor:
        self.bytes_read += rows.nbytes
        if isinstance(rows, np.memmap) and rows.filename is not None and rows.flags.c_contiguous:
            # Read, not touched: pages of a map would stay in this process for every bag it walks.
            rows = np.fromfile(rows.filename, rows.dtype, rows.size, offset=rows.offset).reshape(
                rows.shape
            )
        elif not rows.flags.writeable:
            rows = np.array(rows)  # torch warns of read-only memory
        return torch.from_numpy(rows)

    def _needs_repacking(self, file: BagFile) -> bool:
        return self.tier == "mapped" and file.row_chunked and self.cache is not None

    def _repacked(self, file: BagFile) -> NDArray[Any]:
        from wsipipe.store.publish import publishing

        assert self.cache is not None
        stat = file.path.stat()
        mark = f"{file.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        target = self.cache / f"{hashlib.sha256(mark.encode()).hexdigest()[:20]}.npy"
        if not target.is_file():
            rows = np.ascontiguousarray(open_rows(file))
            self.cache.mkdir(parents=True, exist_ok=True)
            with publishing(target) as temporary:
                header = _npy_header(rows)
                temporary.write(header)
                temporary.write(rows.data.cast("B"))
        try:
            return np.load(target, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except (ValueError, OSError) as error:
            raise CorruptFileError(target, f"is damaged ({error}).", "Remove it.") from error


def _npy_header(rows: NDArray[Any]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array_header_2_0(buffer, np.lib.format.header_data_from_array_1_0(rows))
    return buffer.getvalue()
