"""Recipes for `wsipipe run`: stages of commands in a YAML file, checked before anything starts.

    about: Features, then a model.
    settings: {slides: slides, labels: labels.csv, out: wsipipe-out}   # what --set changes
    stages:
      extract: {slides: ["${slides}"], encoder: [texture], out: "${out}"}
      train:
        needs: [extract]
        for: {aggregator: [abmil, mean]}                               # one run for each
        features: ${out}/features/texture
        labels: ${labels}
        target: label
        aggregator: ${aggregator}
        out: ${out}/train/${aggregator}

`${extract.folder}` is where below `features/` an extract stage writes, whatever spelling of the
encoder it was given. A stage's keys are the options of its command (`run: NAME`, by default the
stage's own name), so a recipe knows exactly what the command line knows. Mistakes are refused with
their line.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wsipipe.errors import ConfigError
from wsipipe.words import read_setting, read_word

__all__ = ["CommandSpec", "OptionSpec", "Recipe", "Stage", "load_recipe"]

_STAGE_KEYS = ("run", "needs", "for")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class OptionSpec:
    """One option or argument of a command.

    Attributes:
        flag: "--name"; "" for a positional argument.
        off_flag: "--no-name" where a switch has one, else "".
        is_switch: Takes no value.
        multiple: May be given several times.
        check: Raises ValueError with a reason for a text that the command would refuse.
    """

    flag: str
    off_flag: str
    is_switch: bool
    multiple: bool
    required: bool
    check: Callable[[str], object]


@dataclass(frozen=True)
class CommandSpec:
    """A command and its options by the names that recipes use (`mpp_tolerance`).

    Attributes:
        outcomes: What later stages may ask for as `${stage.name}` beside the stage's options:
            name -> function of the options as written.
    """

    name: str
    options: Mapping[str, OptionSpec]
    outcomes: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One command to run, all references resolved.

    Attributes:
        name: The recipe's name, with the values of `for` in brackets.
        needs: Names of stages that come before.
        options: Option name -> value (text, number, bool or list), as written.
        arguments: The command line, without the command's name.
    """

    name: str
    command: CommandSpec
    needs: tuple[str, ...]
    options: Mapping[str, Any]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `stages` are in the order in which they run."""

    path: Path
    about: str
    settings: Mapping[str, Any]
    stages: tuple[Stage, ...]

    @property
    def out(self) -> Path:
        """Folder of the run, where the state of the stages is kept."""
        return Path(str(self.settings["out"]))


class _Document:
    """A parsed YAML file that knows the line of each key."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines: dict[tuple[str, ...], int] = {}
        self._open: set[int] = set()  # nodes whose content is being read
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error)
            raise ConfigError(f"{path}{where}: not YAML: {problem}.") from error
        self.content = self._build(node, ()) if node is not None else None

    def _build(self, node: yaml.Node, where: tuple[str, ...]) -> Any:
        self.lines[where] = node.start_mark.line + 1
        if id(node) in self._open:
            raise self.error(where, "an alias that holds itself")
        self._open.add(id(node))
        try:
            return self._content(node, where)
        finally:
            self._open.remove(id(node))

    def _content(self, node: yaml.Node, where: tuple[str, ...]) -> Any:
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                place = (*where, key)
                if key in found:
                    raise self.error(
                        place, f"'{key}' is there twice", line=key_node.start_mark.line + 1
                    )
                found[key] = self._build(value_node, place)
                self.lines[place] = key_node.start_mark.line + 1
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*where, str(i))) for i, item in enumerate(node.value)]
        quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
        return str(node.value) if quoted else read_word(str(node.value))

    def error(
        self, where: tuple[str, ...], problem: str, remedy: str = "", *, line: int | None = None
    ) -> ConfigError:
        while line is None:
            # An empty file has no lines at all.
            line = self.lines.get(where) if where else self.lines.get((), 1)
            where = where[:-1]
        return ConfigError(f"{self.path}, line {line}: {problem}.", remedy)

    def mapping(self, value: Any, where: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(where, f"'{'.'.join(where) or 'the file'}' is not a mapping of names")
        return value


def load_recipe(
    path: str | Path, commands: Mapping[str, CommandSpec], changes: Sequence[str] = ()
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        commands: What stages may run.
        changes: "key=value" of `settings`, or "stage.option=value".

    Raises:
        ConfigError: With the line and, where a name is nearly right, the right one.
    """
    path = Path(path)
    try:
        document = _Document(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from error
    content = document.mapping(document.content, ())
    _known(document, content, ("about", "settings", "stages"), (), "key")
    settings = document.mapping(content.get("settings", {}), ("settings",))
    stages = document.mapping(content.get("stages"), ("stages",))
    if not stages:
        raise document.error(("stages",), "a recipe needs at least one stage")
    for name, stage in stages.items():
        document.mapping(stage, ("stages", name))
    _apply(changes, settings, stages)
    if "out" not in settings:
        raise document.error((), "'settings' has no 'out'", "Name the folder of the run there.")
    built: list[Stage] = []
    expanded: dict[str, list[Stage]] = {}
    for name, entry in stages.items():
        expanded[name] = _expand(document, name, entry, settings, commands, expanded)
        built += expanded[name]
    return Recipe(path, str(content.get("about", "")), settings, tuple(built))


def _known(
    document: _Document,
    content: Iterable[str],
    names: Iterable[str],
    where: tuple[str, ...],
    what: str,
) -> None:
    names = list(names)
    for key in content:
        if key not in names:
            raise document.error((*where, key), f"unknown {what} '{key}'", _suggest(key, names))


def _suggest(word: str, names: Iterable[str]) -> str:
    names = sorted(names)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."


def _apply(
    changes: Sequence[str], settings: dict[str, Any], stages: Mapping[str, dict[str, Any]]
) -> None:
    for change in changes:
        key, value = read_setting(change)
        stage, dot, option = key.partition(".")
        if key in settings:
            settings[key] = value
        elif dot and stage in stages:
            stages[stage][option] = value
        else:
            names = [*settings, *(f"{name}.OPTION" for name in stages)]
            raise ConfigError(f"--set {key}: the recipe has no such setting.", _suggest(key, names))


def _expand(
    document: _Document,
    name: str,
    entry: Mapping[str, Any],
    settings: Mapping[str, Any],
    commands: Mapping[str, CommandSpec],
    before: Mapping[str, list[Stage]],
) -> list[Stage]:
    """One stage for each combination of the values of its `for`."""
    where = ("stages", name)
    run = str(entry.get("run", name))
    if run not in commands:
        place = (*where, "run") if "run" in entry else where
        raise document.error(place, f"no command '{run}' for a stage", _suggest(run, commands))
    command = commands[run]
    _known(document, entry, [*_STAGE_KEYS, *command.options], where, f"option of {run}:")
    needs = entry.get("needs", [])
    needs = needs if isinstance(needs, list) else [needs]
    for need in map(str, needs):
        if need not in before:
            problem = f"'{need}' is no stage before '{name}'"
            raise document.error((*where, "needs"), problem, _suggest(need, before))
    needed = tuple(stage.name for need in needs for stage in before[need])
    settings = {**settings, **_outcomes({need: before[need] for need in needs})}
    loops = document.mapping(entry.get("for", {}), (*where, "for"))
    choices = []
    for key, values in loops.items():
        values = _resolve(document, values, settings, (*where, "for", key))
        # What names a setting or an outcome may be one value as well as a list.
        values = values if isinstance(values, list) else [values]
        if not values:
            raise document.error((*where, "for", key), f"'{key}' has no values")
        choices.append([(key, value) for value in values])
    stages = []
    for chosen in itertools.product(*choices):
        known = {**settings, **dict(chosen)}
        options = {
            key: _resolve(document, value, known, (*where, key))
            for key, value in entry.items()
            if key not in _STAGE_KEYS
        }
        label = f"{name}[{','.join(str(v) for _, v in chosen)}]" if chosen else name
        arguments = _arguments(document, command, options, where)
        stages.append(Stage(label, command, needed, options, arguments))
    return stages


def _outcomes(needed: Mapping[str, Sequence[Stage]]) -> dict[str, Any]:
    """`${stage.option}` of the stages that a stage needs; a list where `for` made several.

    What a command works out is a function here, called where it is referred to.
    """
    found: dict[str, Any] = {}
    for name, stages in needed.items():
        for key in stages[0].options if stages else ():
            found[f"{name}.{key}"] = _one_or_all([stage.options[key] for stage in stages])
        for key in stages[0].command.outcomes if stages else ():
            found[f"{name}.{key}"] = functools.partial(_work_out, key, stages)
    return found


def _work_out(key: str, stages: Sequence[Stage]) -> Any:
    found = [stage.command.outcomes[key](stage.options) for stage in stages]
    return _one_or_all([item for part in found for item in part])


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _resolve(
    document: _Document, value: Any, known: Mapping[str, Any], where: tuple[str, ...]
) -> Any:
    """Replace ${name}; a value that is nothing but one reference keeps its type."""
    if isinstance(value, list):
        return [_resolve(document, item, known, where) for item in value]
    if not isinstance(value, str):
        return value
    for name in _REFERENCE.findall(value):
        if name not in known:
            raise document.error(where, f"${{{name}}} is not a setting", _suggest(name, known))

    def content(name: str) -> Any:
        return known[name]() if callable(known[name]) else known[name]

    whole = _REFERENCE.fullmatch(value)
    if whole:
        return content(whole[1])
    for name in _REFERENCE.findall(value):
        if isinstance(content(name), list):
            problem = f"${{{name}}} is a list; it cannot be part of a text"
            raise document.error(where, problem, "Run the stage once for each: for: {NAME: ...}.")
    return _REFERENCE.sub(lambda match: str(content(match[1])), value)


def _arguments(
    document: _Document,
    command: CommandSpec,
    options: Mapping[str, Any],
    where: tuple[str, ...],
) -> tuple[str, ...]:
    line: list[str] = []
    positional: list[str] = []
    for key, value in options.items():
        option = command.options[key]
        place = (*where, key)
        if value is None:
            continue
        if option.is_switch:
            if not isinstance(value, bool):
                raise document.error(place, f"'{key}' is true or false, not {value!r}")
            line += [option.flag] if value else [option.off_flag] if option.off_flag else []
            continue
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and not option.multiple:
            raise document.error(place, f"'{key}' takes one value, not a list")
        for item in values:
            text = str(item)
            try:
                option.check(text)
            except ValueError as error:
                raise document.error(place, f"'{key}': {error}") from error
            if option.flag:
                line.append(f"{option.flag}={text}")
            else:
                positional.append(text)
    for key, option in command.options.items():
        if option.required and options.get(key) is None:
            raise document.error(where, f"{command.name} needs '{key}'")
    return (*line, *(["--", *positional] if positional else []))
