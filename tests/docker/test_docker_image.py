"""The image, built and run for real: `make docker-test`. Needs root and Debian; minutes.

A private Docker engine is started and ended by the test. Where no registry is reached, a minimal
Debian with Debian's Python stands in for the official base image (docker/private_engine.sh).
torch (gigabytes) is not downloaded again: the image is built without it, and the torch of this
environment is lent to the containers, read-only. WSIPIPE_DOCKER_TORCH=1 builds it in.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CA = Path("/etc/ssl/certs/ca-certificates.crt")
SITE = "/opt/venv/lib/python3.11/site-packages"
IMAGE = "wsipipe:test"
# What torch and torchvision consist of, and what they import that nothing else here needs.
LENT = ("torch", "torchgen", "torchvision", "torchvision.libs", "nvidia", "triton", "functorch")

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.environ.get("WSIPIPE_DOCKER_TEST") != "1", reason="run it by `make docker-test`"
    ),
]


def run(*args: object, check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, args))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which `docker` reaches the private engine."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a private Docker engine needs root on Debian")
    kept = os.environ.get("WSIPIPE_DOCKER_ENGINE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("engine")
    script = ROOT / "docker" / "private_engine.sh"
    if not (folder / "sock").exists():
        # Its output goes to a file: the engine outlives the script and keeps what it inherits.
        with (folder / "up.log").open("w") as log:
            done = subprocess.run([script, "up", folder], stdout=log, stderr=log, check=False)
        if done.returncode:
            pytest.skip(f"no Docker engine here: {(folder / 'up.log').read_text()[-500:]}")
    try:
        yield {**os.environ, "DOCKER_HOST": f"unix://{folder}/sock", "DOCKER_BUILDKIT": "1"}
    finally:
        if not kept:
            run(script, "down", folder, check=False)


@pytest.fixture(scope="module")
def image(engine: dict[str, str]) -> str:
    lent = os.environ.get("WSIPIPE_DOCKER_TORCH") != "1"
    arguments = ["--build-arg", "TORCH=none"] if lent else []
    secret = ["--secret", f"id=ca,src={CA}"] if CA.is_file() else []
    run(
        "/usr/bin/docker", "build", "--network", "host", *secret, *arguments,
        "--build-arg", "VERSION=0.1.0", "--build-arg", "REVISION=test",
        "-f", "docker/Dockerfile", "-t", IMAGE, ".",
        env=engine, cwd=ROOT,
    )  # fmt: skip
    return IMAGE


def lent_torch() -> list[str]:
    if os.environ.get("WSIPIPE_DOCKER_TORCH") == "1":
        return []
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    names = [name for name in LENT if (site / name).is_dir()]
    names += [p.name for p in site.glob("torch*.dist-info") if "metrics" not in p.name]
    return [f"--volume={site / name}:{SITE}/{name}:ro" for name in names]


HARDENED = (
    *("--network", "none", "--read-only", "--tmpfs", "/tmp:rw,size=256m", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--user", "54321:0", "--memory", "3g"),
    *("--shm-size", "64m"),
)


def command(
    *args: object, mounts: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> list[str]:
    volumes = [f"--volume={mount}" for mount in mounts]
    return [
        *("/usr/bin/docker", "run", *HARDENED, *volumes, *lent_torch(), *options),
        *(IMAGE, *map(str, args)),
    ]


@pytest.fixture(scope="module")
def slides(engine: dict[str, str], image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic slides, made in a container by a uid that nobody has."""
    folder = tmp_path_factory.mktemp("slides")
    folder.chmod(0o777)
    making = command("synth", "/slides", "-n", "3", "--size", "4096", mounts=(f"{folder}:/slides",))
    run(*making, env=engine)
    return folder


def test_nothing_but_the_package_enters_the_image(engine: dict[str, str], image: str) -> None:
    facts = json.loads(run("/usr/bin/docker", "inspect", image, env=engine).stdout)[0]
    labels = facts["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert facts["Config"]["User"] == "10001:10001"
    assert "HF_HUB_OFFLINE=1" in facts["Config"]["Env"]
    history = run("/usr/bin/docker", "history", "--no-trunc", image, env=engine).stdout
    assert "BEGIN CERTIFICATE" not in history
    listing = run(
        "/usr/bin/docker", "run", "--rm", "--network", "none", "--entrypoint", "python", image,
        "-c", "import pathlib, wsipipe; print(*pathlib.Path('/').iterdir()); "
        "print(pathlib.Path('/src').exists(), pathlib.Path('/opt/build').exists())",
        env=engine,
    ).stdout  # fmt: skip
    assert listing.splitlines()[-1] == "False False"


def test_doctor_finds_the_image_fit(engine: dict[str, str], image: str) -> None:
    done = run(*command("doctor", "--json", "--out", "/tmp/out"), env=engine, check=False)
    document = json.loads(done.stdout)
    broken = [check for check in document["checks"] if check["status"] == "broken"]
    assert broken == []
    assert document["fit"]


def statuses(out: Path) -> list[str]:
    with (out / "slides.csv").open() as file:
        return [line["status"] for line in csv.DictReader(file)]


def test_extract_without_network_root_or_home(
    engine: dict[str, str], slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    mounts = (f"{slides}:/slides:ro", f"{out}:/out")
    run(*command("extract", "/slides", "--out", "/out", mounts=mounts), env=engine)
    assert statuses(out) == ["done"] * 3
    run(*command("verify", "/out", mounts=mounts), env=engine)
    assert {path.stat().st_uid for path in (out / "features/texture").iterdir()} == {54321}


def test_stop_ends_with_75_and_the_same_command_goes_on(
    engine: dict[str, str], slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    mounts = (f"{slides}:/slides:ro", f"{out}:/out")
    # Overlapping tiles make the run long enough to be stopped in its middle.
    extract = ("extract", "/slides", "--out", "/out", "--overlap", "0.75", "--grace", "5")
    name = f"wsipipe-test-{os.getpid()}"
    options = ("--detach", "--name", name)
    run(*command(*extract, mounts=mounts, options=options), env=engine)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("thumbnails/*.jpg")) and time.monotonic() < deadline:
            time.sleep(0.2)
        start = time.monotonic()
        run("/usr/bin/docker", "stop", "--time", "60", name, env=engine)
        assert time.monotonic() - start < 45
        code = run("/usr/bin/docker", "wait", name, env=engine).stdout.strip()
        assert code == "75", run("/usr/bin/docker", "logs", name, env=engine).stderr[-2000:]
    finally:
        run("/usr/bin/docker", "rm", "--force", name, env=engine, check=False)
    assert not list(out.rglob(".*.tmp"))
    run(*command(*extract, mounts=mounts), env=engine)
    assert statuses(out) == ["done"] * 3
    run(*command("verify", "/out", mounts=mounts), env=engine)


def test_a_pipeline_goes_from_slides_to_the_report_without_network(
    engine: dict[str, str], image: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    mounts = (f"{out}:/out", f"{ROOT / 'pipelines'}:/pipelines:ro")
    run(*command("synth", "/out/slides", "-n", "12", "--size", "1536", mounts=mounts), env=engine)
    settings = ("slides=/out/slides", "labels=/out/slides/labels.csv", "out=/out/run", "folds=2")
    line = [word for setting in settings for word in ("--set", setting)]
    recipe = command("run", "/pipelines/subtyping.yaml", *line, mounts=mounts)
    run(*recipe, env=engine)
    assert statuses(out / "run") == ["done"] * 12
    metrics = json.loads((out / "run" / "train" / "metrics.json").read_text())["metrics"]
    assert 0 <= metrics["auroc"]["pooled"] <= 1
    assert list((out / "run" / "heatmaps").rglob("*.png"))
    assert "<html" in (out / "run" / "report.html").read_text()
    again = run(*recipe, env=engine)
    assert again.stderr.count("done already") == 4


def test_the_contents_are_listed(engine: dict[str, str], image: str, tmp_path: Path) -> None:
    """The image's packages, as `make sbom` lists them, are those of the lock."""
    listing = run(
        "/usr/bin/docker", "run", "--rm", "--network", "none", "--entrypoint", "python", image,
        "-c", "from importlib import metadata as m; "
        "print(*sorted(f'{d.name.lower()}=={d.version}' for d in m.distributions()), sep='\\n')",
        env=engine,
    ).stdout  # fmt: skip
    installed = set(listing.replace("_", "-").split())
    locked = {
        line.split()[0]
        for line in (ROOT / "docker/requirements.txt").read_text().splitlines()
        if "==" in line and ("python_full_version" not in line or "< '3.12'" in line)
        and "sys_platform" not in line and "platform_machine" not in line
    }  # fmt: skip
    assert locked - {name.replace("_", "-") for name in installed} == set()
