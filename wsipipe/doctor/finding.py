"""What a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["good", "note", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        group: "software", "devices", "storage" or "weights".
        name: What was looked at.
        status: "good"; "note" (neither good nor bad); "warning" (works, but badly or not always);
            "broken" (essential, and it does not work).
        detail: What was found.
        remedy: What to do; "" where there is nothing to do.
    """

    group: str
    name: str
    status: Status
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {key: str(value) for key, value in asdict(self).items()}


def human_bytes(count: float) -> str:
    """`12.3 GB`: decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
