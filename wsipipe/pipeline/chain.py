"""Run the stages of a recipe: only what is missing or has changed, and say why.

A stage is done when its record (OUT/pipeline/<stage>.json) names the same identity: the command,
its options, what it reads (the labels' bytes; names, sizes and times of the files of folders) and
the identities of the stages before it. Each stage is one process of the command line, so that a
crash in one is no crash of the others, and each is resumable by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsipipe.errors import Drained
from wsipipe.pipeline.recipe import Recipe, Stage
from wsipipe.store import identity_differences, identity_hash, publish_text, safe_name

__all__ = ["Planned", "plan_stages", "run_stages"]

# Options that do not change what a stage gives.
_WITHOUT_EFFECT = {"workers", "device", "batch_size", "out", "json", "as_json", "grace", "stage"}
# Options that name files or folders; what is no path (a catalogue name) reads as absent, always.
_READS = {
    *("slides", "features", "labels", "model", "models", "splits", "tissue", "roi", "weights"),
    *("encoder", "tiles", "monitor_tiles", "clusters", "init", "recipe"),
}
# A stage that ends by one of these was asked to stop; any other signal is a crash.
_ASKED = (75, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR1)
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True)
class Planned:
    """A stage with what is to happen: `reason` is "" where nothing is."""

    stage: Stage
    identity: Mapping[str, Any]
    reason: str
    settings_changed: bool

    @property
    def to_do(self) -> bool:
        """Whether the stage runs."""
        return bool(self.reason)


def plan_stages(recipe: Recipe) -> list[Planned]:
    """What would run now, and why; reads records and inputs, writes nothing."""
    planned: dict[str, Planned] = {}
    for stage in recipe.stages:
        planned[stage.name] = _plan(recipe, stage, planned, ahead=True)
    return list(planned.values())


def run_stages(recipe: Recipe, *, say: Callable[[str], None]) -> dict[str, int]:
    """Run what is missing or changed, in order.

    A stage in which some slides or folds failed (exit code 1) lets the next ones go on. Any other
    failure ends the run; stages that do not need the failed one are left for the next time, too.

    Args:
        recipe: What to run.
        say: Receives one line an event.

    Returns:
        Stage -> exit code, of the stages that ran; the last one may be 2, 3, 4, 70, or 128 and
        the signal that it crashed with.

    Raises:
        Drained: A signal stopped a stage; run again to go on.
    """
    codes: dict[str, int] = {}
    done: dict[str, Planned] = {}
    for stage in recipe.stages:
        # Planned anew: what a stage reads may have been written by the one before.
        plan = done[stage.name] = _plan(recipe, stage, done, ahead=False)
        if not plan.to_do:
            say(f"{stage.name}: done already")
            continue
        arguments = list(stage.arguments)
        if plan.settings_changed and "recompute" in stage.command.options:
            arguments.insert(0, stage.command.options["recompute"].flag)
        say(f"{stage.name}: {plan.reason}")
        say(f"$ wsipipe {' '.join([stage.command.name, *arguments])}")
        code = _run([stage.command.name, *arguments])
        if code in _ASKED:
            raise Drained("a signal")
        if code < 0:
            say(f"{stage.name}: crashed ({signal.Signals(-code).name}).")
            code = 128 - code  # as a shell says it
        codes[stage.name] = code
        if code not in (0, 1):
            say(f"{stage.name}: ended with code {code}; the stages after it wait.")
            break
        record = {"stage": stage.name, "exit_code": code, "identity": dict(plan.identity)}
        publish_text(_record_path(recipe, stage), json.dumps(record, indent=1, sort_keys=True))
    return codes


def _plan(recipe: Recipe, stage: Stage, before: Mapping[str, Planned], *, ahead: bool) -> Planned:
    """`ahead`: the stages before have not run yet, so what they will write is not known."""
    identity = _now(stage, before)
    running = [need for need in stage.needs if before[need].to_do]
    stored = _stored(_record_path(recipe, stage))
    if stored is None:
        return Planned(stage, identity, "not done yet", False)
    if stored["exit_code"] != 0:
        return Planned(stage, identity, "some of it failed the last time", False)
    changed = identity_differences(stored["identity"], identity)
    if changed:
        named = sorted(changed)
        reason = f"changed: {', '.join(named)}"
        return Planned(stage, identity, reason, True)
    missing = [path for path in _outputs(stage) if not path.exists()]
    if missing:
        return Planned(stage, identity, f"{missing[0]} is gone", False)
    if running and (ahead or not identity["reads"]):
        return Planned(stage, identity, f"after {', '.join(running)}", False)
    return Planned(stage, identity, "", False)


def _now(stage: Stage, before: Mapping[str, Planned]) -> dict[str, Any]:
    """What the stage's result depends on, as it is now."""
    return {
        "command": stage.command.name,
        "options": {k: v for k, v in stage.options.items() if k not in _WITHOUT_EFFECT},
        "reads": {
            f"{key} {text}": _content(Path(text))
            for key, value in stage.options.items()
            if key in _READS
            for text in map(str, value if isinstance(value, list) else [value])
        },
        "after": {need: identity_hash(_settings_of(before[need])) for need in stage.needs},
    }


def _settings_of(plan: Planned) -> dict[str, Any]:
    """The part of an identity that later stages inherit: what they read they look at themselves."""
    return {key: plan.identity[key] for key in ("command", "options", "after")}


def _content(path: Path) -> str:
    """A short name for what lies at a path: a file's bytes, a folder's names, sizes and times."""
    digest = hashlib.sha256()
    if path.is_file() and path.stat().st_size <= _SMALL_BYTES:
        digest.update(path.read_bytes())
    elif path.is_file():
        digest.update(f"{path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    elif path.is_dir():
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(n for n in names if not n.startswith(".")):
                file = Path(folder, name)
                facts = file.stat() if file.exists() else None
                line = f"{file.relative_to(path)} {facts and (facts.st_size, facts.st_mtime_ns)}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    else:
        return "absent"
    return digest.hexdigest()[:16]


def _outputs(stage: Stage) -> list[Path]:
    return [Path(str(stage.options["out"]))] if stage.options.get("out") else []


def _record_path(recipe: Recipe, stage: Stage) -> Path:
    return recipe.out / "pipeline" / f"{safe_name(stage.name)}.json"


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "identity" in record else None


def _run(arguments: Sequence[str]) -> int:
    """One stage as a process of its own; signals to us reach it, and it drains."""
    process = subprocess.Popen([sys.executable, "-m", "wsipipe", *arguments])

    def forward(number: int, _frame: object) -> None:
        # A terminal sends Ctrl-C to the whole group, so the stage has it already.
        if number != signal.SIGINT:
            process.send_signal(number)

    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = {number: signal.signal(number, forward) for number in stops}
    try:
        return process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
