"""The script of a Slurm array whose tasks join one folder.

What it has to get right, as seen on a real Slurm:

- Python runs in the background: bash runs a trap only between commands or in `wait`.
- The time limit announces itself to the batch shell alone (`--signal=B:USR1@...`), preemption by
  SIGTERM; both are passed on, and the task ends with 75 once it has drained.
- `scontrol requeue` ends the script that calls it: it comes last, and only so many times. It would
  also bring back a job that `scancel` is ending; only a job that still counts as running is put
  back (a preempted one, which Slurm puts back by itself, does not).
- A worker that is killed (139, 137) is replaced on the spot; the slide that kills it twice is set
  aside by the run itself.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from wsipipe.errors import ConfigError

__all__ = ["SlurmJob", "seconds_of", "slurm_script"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """An array job.

    Attributes:
        arguments: Of `wsipipe extract`.
        log_folder: Where the tasks' output goes.
        tasks: Size of the array.
        gpu: One GPU for each task.
        time_s: Limit of a task; `warn_s` before it the task starts to drain.
        restarts: How often a task may be put back.
        stage: Slides are copied to the node's own disk first.
        program: How `wsipipe` is called, as shell text.
        further: Lines for `#SBATCH`, as they are.
    """

    arguments: tuple[str, ...]
    log_folder: Path
    tasks: int
    gpu: bool
    time_s: int
    warn_s: int
    cpus: int
    memory: str
    partition: str | None
    account: str | None
    restarts: int
    stage: bool
    program: str
    work_folder: Path
    further: tuple[str, ...] = ()


def seconds_of(text: str) -> int:
    """Seconds of `8h`, `90m`, `2d`, `45s`, `1h30m`, or Slurm's own `[D-]HH:MM:SS`.

    Raises:
        ConfigError: It is none of these.
    """
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{2})(?::(\d{2}))?", text):
        days, hours, minutes, seconds = (int(v or 0) for v in match.groups())
        return days * 86_400 + hours * 3600 + minutes * 60 + seconds
    parts = re.findall(r"(\d+)([smhd])", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        raise ConfigError(f"--time {text!r} is no duration.", "Write 8h, 90m, 2d or 1-12:00:00.")
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def _slurm_time(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    return f"{days}-{hours:02}:{rest // 60:02}:{rest % 60:02}"


def _header(job: SlurmJob) -> list[str]:
    # A task that is too short to drain in would only ever drain.
    warn_s = min(job.warn_s, max(1, job.time_s // 2))
    options = [
        "--job-name=wsipipe",
        f"--array=0-{job.tasks - 1}",
        f"--time={_slurm_time(job.time_s)}",
        f"--cpus-per-task={job.cpus}",
        f"--mem={job.memory}",
        *(["--gres=gpu:1"] if job.gpu else []),
        *([f"--partition={job.partition}"] if job.partition else []),
        *([f"--account={job.account}"] if job.account else []),
        f"--signal=B:USR1@{warn_s}",
        "--requeue",
        "--open-mode=append",
        f"--output={job.log_folder}/%A_%a.log",
        *job.further,
    ]
    return [f"#SBATCH {option}" for option in options]


def slurm_script(job: SlurmJob) -> str:
    """The text of the script for `sbatch`."""
    command = f"{job.program} extract {shlex.join(job.arguments)}"
    stage = []
    if job.stage:
        command += ' --stage "$stage"'
        stage = [
            'stage="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/wsipipe-${SLURM_JOB_ID}"',
            'mkdir -p "$stage"',
            "trap 'rm -rf \"$stage\"' EXIT",
        ]
    lines = [
        "#!/bin/bash",
        *_header(job),
        "# Written by `wsipipe submit slurm`: tasks take slides by lease until none is left.",
        "set -u",
        f"cd {shlex.quote(str(job.work_folder))} || exit 4",
        "export OMP_WAIT_POLICY=PASSIVE HDF5_USE_FILE_LOCKING=BEST_EFFORT",
        *stage,
        "worker=",
        "asked=",
        'pass_on() { asked=1; [ -z "$worker" ] || kill -s "$1" "$worker" 2>/dev/null; }',
        "trap 'pass_on USR1' USR1",
        "trap 'pass_on TERM' TERM",
        "for attempt in 1 2 3 4 5; do",
        f"  {command} &",
        "  worker=$!",
        "  # A trap interrupts wait: wait until the worker is gone, then ask how it ended.",
        '  while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done',
        '  wait "$worker"',
        "  code=$?",
        "  # Killed or crashed, and nobody asked us to stop: another worker takes over.",
        '  if [ "$code" -gt 128 ] && [ -z "$asked" ]; then continue; fi',
        "  break",
        "done",
        'restart="${SLURM_RESTART_COUNT:-0}"',
        'echo "task ${SLURM_ARRAY_TASK_ID:-0}: code $code, worker $attempt, restart $restart"',
        'task="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        'running() { scontrol show job "$task" 2>/dev/null | grep -q JobState=RUNNING; }',
        f'if [ "$code" = 75 ] && [ "$restart" -lt {job.restarts} ] && running; then',
        *(['  rm -rf "$stage"'] if job.stage else []),
        '  scontrol requeue "$task"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
