"""Is this file done? A look at one attribute, so that ten thousand files take seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py

from wsipipe.errors import CorruptFileError, IdentityMismatchError
from wsipipe.store.identity import canonical_json, identity_differences, identity_hash

__all__ = ["FileCheck", "check_file"]

State = Literal["done", "missing", "mismatch", "corrupt"]


@dataclass(frozen=True)
class FileCheck:
    """The answer: `state`; for a mismatch `fields` (stored, wanted), for damage `reason`."""

    path: Path
    state: State
    fields: dict[str, tuple[object, object]] = field(default_factory=dict)
    reason: str = ""

    def raise_if_unusable(self) -> None:
        """Raise for another identity or damage.

        Raises:
            IdentityMismatchError: Made with other settings.
            CorruptFileError: Damaged, or another program's.
        """
        if self.state == "mismatch":
            raise IdentityMismatchError(self.path, self.fields)
        if self.state == "corrupt":
            raise CorruptFileError(
                self.path, self.reason, "Remove it, or use --recompute to replace it."
            )


def check_file(path: str | Path, identity: Mapping[str, Any] | str) -> FileCheck:
    """Compare the file at `path` with what is asked for. About 0.4 ms where it is done.

    Args:
        path: Feature file, whether it exists or not.
        identity: The identity that is wanted, as a mapping or its canonical JSON.

    Returns:
        `done`: there, whole, of this identity. `missing`: not there. `mismatch`: of another
        identity, with the differing fields. `corrupt`: not a whole feature file.
    """
    path = Path(path)
    text = identity if isinstance(identity, str) else canonical_json(identity)
    try:
        # HDF5 compares the size of the file with what its header says: a cut file does not open.
        with h5py.File(path, "r", locking="best-effort") as h5:
            stored = h5.attrs.get("identity")
            if stored == identity_hash(text):
                return FileCheck(path, "done")
            stored_text = h5.attrs.get("identity_json")
    except FileNotFoundError:
        return FileCheck(path, "missing")
    except OSError as error:
        return FileCheck(path, "corrupt", reason=f"not a whole HDF5 file ({error}).")
    if not isinstance(stored_text, str) or identity_hash(stored_text) != stored:
        return FileCheck(path, "corrupt", reason="a file without the identity of this package.")
    return FileCheck(path, "mismatch", identity_differences(stored_text, text))
