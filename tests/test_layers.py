"""The house keeps its order: who may import whom, and what a package must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsipipe"

# A room imports only from rooms above it (its own included).
ORDER = [
    {"types", "errors", "config", "words", "owner", "processor", "_version"},
    {"weights", "_hub", "bundles"},
    {"slide"},
    {"tissue"},
    {"tiling"},
    {"encoders"},
    {"store"},
    {"embed"},
    {"mil"},
    {"pretrain"},
    {"report"},
    {"synth"},
    {"pipeline"},
    {"doctor", "testing"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

# Tighter than the order: these rooms know nothing of the others named.
FORBIDDEN = {
    "encoders": {"slide", "tissue", "tiling", "embed", "store"},
    "mil": {"slide", "tissue", "tiling", "encoders", "embed"},
    "tiling": {"weights"},
    "slide": {"weights"},
}
# A training run ends with its page, whoever starts it: the one call down, inside a function.
EXCEPTIONS = {("mil/results.py", "report")}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, also inside functions; names for annotations do not count."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_names = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in only_names:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "wsipipe":
                names = [f"wsipipe.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "wsipipe" and len(parts) > 1:
                found.add(parts[1])
    return found


FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[:2] != "__"
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(path: Path) -> None:
    own = room(path)
    assert own in RANK, f"{own} has no place in the house: give it one in ORDER"
    place = path.relative_to(PACKAGE).as_posix()
    used = {
        name for name in imported_rooms(path) if name in RANK and (place, name) not in EXCEPTIONS
    }
    above = {name for name in used if RANK[name] > RANK[own]}
    assert not above, f"{path.name} imports from below: {sorted(above)}"
    forbidden = used & FORBIDDEN.get(own, set())
    assert not forbidden, f"{path.name} must know nothing of {sorted(forbidden)}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


HEAVY = {"torch", "timm", "cv2", "skimage", "scipy", "h5py", "openslide", "transformers", "sklearn"}


@pytest.mark.parametrize(
    "statement",
    [
        "import wsipipe",
        "import wsipipe.cli",
        "import wsipipe.errors, wsipipe.types",
        "from wsipipe.encoders import list_encoders; list_encoders()",
    ],
)
def test_light_doors_load_nothing_heavy(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_store_needs_no_torch() -> None:
    loaded = loaded_by("import wsipipe.store")
    assert "h5py" in loaded
    assert "torch" not in loaded
