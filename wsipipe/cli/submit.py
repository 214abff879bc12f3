"""`wsipipe submit slurm`: an array of tasks that join one folder."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from wsipipe.errors import ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _group() -> None:
    """Hand a run to a batch scheduler."""


@app.command(
    "slurm",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[OPTIONS] SLIDES... [OPTIONS OF extract]",
)
def slurm(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Folder of the run, on a disk that all nodes share.")
    ] = Path("wsipipe-out"),
    gpus: Annotated[int, typer.Option(min=0, help="Tasks with one GPU each; 0: see --tasks.")] = 1,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks without a GPU (with --gpus 0).")] = 1,
    time: Annotated[str, typer.Option(help="Limit of one task: 8h, 90m, 2d, 1-12:00:00.")] = "8h",
    cpus: Annotated[int, typer.Option(min=1, help="Cores a task.")] = 8,
    memory: Annotated[str, typer.Option(help="Memory a task, as Slurm writes it.")] = "32G",
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    warn: Annotated[
        int, typer.Option(min=1, help="Seconds before the limit at which a task starts to drain.")
    ] = 300,
    restarts: Annotated[int, typer.Option(min=0, help="How often a task is put back.")] = 20,
    stage: Annotated[
        bool, typer.Option(help="Copy each slide to the node's own disk first.")
    ] = True,
    image: Annotated[
        Path | None, typer.Option(help="Apptainer image (.sif) to run in; see --bind.")
    ] = None,
    bind: Annotated[
        list[str] | None, typer.Option(help="Path the image may see, as apptainer writes it.")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="A further line, for instance '--qos=long'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script; submit nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say as JSON what was done.")] = False,
) -> None:
    """Write an array job whose tasks join one folder, and submit it.

    The array has as many tasks as GPUs are wanted, not as slides there are: tasks take slides by
    lease, so a slow slide holds up nobody. Preempted, or short before its time limit, a task
    finishes what it can and is put back; the rest goes on from whole files.

    [bold]Examples[/bold]

      wsipipe submit slurm slides/ --gpus 8 --time 8h --out /shared/run --encoder phikon --dry-run

      wsipipe submit slurm cohort.csv --gpus 4 --partition gpu --out /shared/run --encoder texture

      wsipipe status /shared/run --watch
    """
    from wsipipe.store.publish import make_folder, publish_text
    from wsipipe.store.slurm import SlurmJob, seconds_of, slurm_script

    arguments = [*context.args, "--out", str(out.absolute()), "--join"]
    _check_extract(arguments)
    job = SlurmJob(
        arguments=tuple(arguments),
        log_folder=out.absolute() / "slurm",
        tasks=gpus or tasks,
        gpu=gpus > 0,
        time_s=seconds_of(time),
        warn_s=warn,
        cpus=cpus,
        memory=memory,
        partition=partition,
        account=account,
        restarts=restarts,
        stage=stage,
        program=_program(image, bind or []),
        work_folder=Path.cwd(),
        further=tuple(sbatch or ()),
    )
    script = slurm_script(job)
    if dry_run:
        typer.echo(script, nl=False)
        return
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch is not on this machine.", "--dry-run prints the script.")
    path = publish_text(make_folder(job.log_folder) / "job.sbatch", script)
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(
            f"sbatch refused the job: {done.stderr.strip()}", f"The script is {path}."
        )
    number = done.stdout.strip().split(";")[0]
    if as_json:
        typer.echo(json.dumps({"job": number, "script": str(path), "tasks": job.tasks}))
    else:
        typer.echo(f"Submitted job {number} ({job.tasks} tasks). Its script is {path}")
        typer.echo(f"Watch it: wsipipe status {out} --watch")


def _check_extract(arguments: list[str]) -> None:
    """Refuse a wrong option of `extract` now, not on forty nodes in an hour."""
    from wsipipe.cli.extract import command

    single = typer.Typer(add_completion=False)
    single.command("extract")(command)
    typer.main.get_command(single).make_context("wsipipe extract", list(arguments))


def _program(image: Path | None, bind: list[str]) -> str:
    if image is None:
        return f"{shlex.quote(sys.executable)} -m wsipipe"
    binds = "".join(f" --bind {shlex.quote(b)}" for b in bind)
    # Without these three, the caller's home, environment and site-packages leak in.
    return (
        f"apptainer run --containall --cleanenv --no-home --nv{binds} "
        f"{shlex.quote(str(image.absolute()))}"
    )
