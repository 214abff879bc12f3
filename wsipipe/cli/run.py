"""`wsipipe run`: a recipe of stages; only what is missing or changed runs."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsipipe.pipeline.recipe import CommandSpec, OptionSpec

# What a stage may run. Commands that only look or only fetch are no stages.
STAGES = (
    "synth", "tissue", "tile", "extract", "train", "predict", "heatmap", "compare", "report",
    "export", "verify", "pretrain",
)  # fmt: skip


def command(
    pipeline: Annotated[Path, typer.Argument(help="Recipe (YAML).", show_default=False)],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the recipe, or stage.option; repeat."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and why; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Chain the stages: slides to features to models to heatmaps and a report.

    A stage runs when it is missing, when an option of it or of a stage before it has changed, or
    when what it reads has changed; the reason is said. Stages are the commands of wsipipe, their
    keys are the commands' options, and unknown keys or wrong types are refused with their line.

    [bold]Examples[/bold]

      wsipipe run pipelines/subtyping.yaml --set slides=/data/slides --set labels=labels.csv

      wsipipe run pipelines/subtyping.yaml --set train.folds=10 --dry-run

    Exit codes: 0 all done, 1 some slides or folds failed, 75 stopped by a signal (run it again);
    2, 3 or 4: as the stage that stopped the run.
    """
    import json

    from wsipipe.pipeline.chain import plan_stages, run_stages
    from wsipipe.pipeline.recipe import load_recipe

    recipe = load_recipe(pipeline, {name: command_spec(name) for name in STAGES}, set_ or [])
    if dry_run:
        plan = plan_stages(recipe)
        if as_json:
            rows = [
                {
                    "stage": p.stage.name,
                    "command": ["wsipipe", p.stage.command.name, *p.stage.arguments],
                    "runs": p.to_do,
                    "reason": p.reason,
                }
                for p in plan
            ]
            typer.echo(json.dumps({"stages": rows}))
            return
        for p in plan:
            typer.echo(f"{p.stage.name}: {p.reason or 'done already'}")
            typer.echo(f"    wsipipe {' '.join([p.stage.command.name, *p.stage.arguments])}")
        return
    codes = run_stages(recipe, say=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps({"out": str(recipe.out), "exit_codes": codes}))
    worst = next((c for c in codes.values() if c not in (0, 1)), max(codes.values(), default=0))
    if worst:
        raise typer.Exit(worst)


def command_spec(name: str) -> CommandSpec:
    """A command's options, read from the signature that the command line itself is made of."""
    from wsipipe.cli import COMMANDS
    from wsipipe.pipeline.recipe import CommandSpec

    module = importlib.import_module(f"wsipipe.cli.{COMMANDS[name][0]}")
    hints = typing.get_type_hints(module.command, include_extras=True)
    defaults = inspect.signature(module.command).parameters
    options: dict[str, OptionSpec] = {}
    for parameter, hint in hints.items():
        if parameter == "return":
            continue
        key, spec = _option_spec(parameter, hint, defaults[parameter].default)
        options[key] = spec
    return CommandSpec(name, options, {"folder": _feature_folders} if name == "extract" else {})


def _feature_folders(options: Mapping[str, Any]) -> list[str]:
    """Names below `features/` that an extract stage with these options writes."""
    from wsipipe.config import ExtractSettings
    from wsipipe.pipeline.targets import find_targets

    names = {"encoder": "encoders", "mpp": "mpp", "tile_px": "tile_px"}
    given = {name: options[key] for key, name in names.items() if options.get(key) is not None}
    off_card = bool(options.get("allow_off_card"))
    settings = ExtractSettings.of(allow_off_card=off_card, **given)
    return [target.folder for target in find_targets(settings)]


def _option_spec(parameter: str, hint: Any, default: Any) -> tuple[str, OptionSpec]:
    from wsipipe.pipeline.recipe import OptionSpec

    base, *notes = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    info: Any = notes[0] if notes else None
    kind, multiple = _kind(base)
    required = default is inspect.Parameter.empty
    if isinstance(info, typer.models.ArgumentInfo):
        return parameter, OptionSpec("", "", False, multiple, required, _check(kind))
    words = [word for word in getattr(info, "param_decls", None) or () if word.startswith("--")]
    flag, _, off = (words[0] if words else f"--{parameter.replace('_', '-')}").partition("/")
    is_switch = kind is bool
    if is_switch and not words:
        off = f"--no-{parameter.replace('_', '-')}"
    key = flag.removeprefix("--").replace("-", "_")
    return key, OptionSpec(flag, off, is_switch, multiple, required, _check(kind))


def _kind(base: Any) -> tuple[type, bool]:
    """The plain type of an annotation, and whether it may be given several times."""
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        base = next(part for part in typing.get_args(base) if part is not type(None))
    if typing.get_origin(base) in (list, tuple):
        return _kind(typing.get_args(base)[0])[0], True
    return (base if isinstance(base, type) else str), False


def _check(kind: type) -> Callable[[str], object]:
    words = {int: "a whole number", float: "a number"}

    def check(text: str) -> object:
        try:
            return kind(text) if kind in words else text
        except ValueError:
            raise ValueError(f"{text!r} is not {words[kind]}") from None

    return check
