"""Settings of a process: one frozen dataclass tree, filled from defaults, a file, the environment and flags.

Later sources win: default, then the YAML file named by `--config` (its nesting is the tree's), then the environment
(`CULVERT_<FIELD>`), then the command line (`--field value`). Every fault of every source is reported at once, together
with what a component's own check finds in the values. Field names are unique over the whole tree, so a flag needs no
section.

A leaf is declared with `setting(default, "what it means")`; its type is one of str, int, float, bool, Path, an
optional of these, or a tuple of str (comma separated in flags and environment).
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_REQUIRED = object()


class SettingsFault(Exception):
    """One or more settings are wrong; `faults` lists each with its source."""

    def __init__(self, program: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in faults)
        super().__init__(f"{program}: {len(faults)} fault{'s' if len(faults) != 1 else ''} in its settings:\n{lines}")


class HelpAsked(Exception):
    """`--help` was given; the text is the message."""


def setting(default: Any = _REQUIRED, meaning: str = "", *, secret: bool = False) -> Any:
    """Declare a leaf; without a default it must be given. A secret is never shown by `dump`."""
    metadata = {"meaning": meaning, "secret": secret, "required": default is _REQUIRED}
    return dataclasses.field(default=None if default is _REQUIRED else default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class _Leaf:
    path: tuple[str, ...]
    kind: Any
    field: Any

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "CULVERT_" + self.name.upper()


class _Faults:
    """What was found wrong so far, and in which leaves."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.flags: set[str] = set()

    def add(self, text: str, leaf: _Leaf | None = None) -> None:
        self.texts.append(text)
        if leaf is not None:
            self.flags.add(leaf.flag)

    def add_checked(self, texts: Iterable[str]) -> None:
        """Findings about values; one that speaks of a leaf whose value could not be read at all says nothing new."""
        for text in texts:
            if text and self.flags.isdisjoint(re.findall(r"--[a-z0-9-]+", text)):
                self.texts.append(text)


def load(
    tree: type[T],
    program: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    check: Callable[[T], Iterable[str]] = lambda _: (),
) -> T:
    """Fill `tree`; raises SettingsFault with everything that is wrong, or HelpAsked.

    `check` says what is wrong with the values, "" for nothing; each finding names the flags that it is about. It also
    runs when values are missing or unreadable: these then have their default, or for one without a default nothing.
    """
    leaves = {leaf.name: leaf for leaf in _leaves(tree, ())}
    if "--help" in argv or "-h" in argv:
        raise HelpAsked(_help(program, tree, leaves.values()))
    faults = _Faults()
    flags, config_path = _read_flags(leaves, argv, faults)
    values: dict[str, Any] = _read_file(tree, config_path, faults) if config_path else {}
    for leaf in leaves.values():
        if leaf.variable in env:
            _convert_into(values, leaf, env[leaf.variable], leaf.variable, faults)
    for name, text in flags.items():
        _convert_into(values, leaves[name], text, leaves[name].flag, faults)
    for leaf in leaves.values():
        if leaf.field.metadata["required"] and values.get(leaf.name) is None:
            faults.add(f"{leaf.flag}: missing ({leaf.field.metadata['meaning']})", leaf)
            values[leaf.name] = _nothing(leaf.kind)
    settings = _build(tree, values)
    faults.add_checked(check(settings))
    if faults.texts:
        raise SettingsFault(program, faults.texts)
    return settings


def _nothing(kind: Any) -> Any:
    """A value of the type that a check can look at."""
    return kind() if isinstance(kind, type) else None


def dump(settings: Any) -> dict[str, Any]:
    """The tree as plain values for `/config_dump`, secrets replaced."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            out[field.name] = dump(value)
        elif field.metadata.get("secret"):
            out[field.name] = "<redacted>"
        else:
            out[field.name] = str(value) if isinstance(value, Path) else value
    return out


def _leaves(tree: type[Any], path: tuple[str, ...]) -> list[_Leaf]:
    found: list[_Leaf] = []
    kinds = typing.get_type_hints(tree)
    for field in dataclasses.fields(tree):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            found += _leaves(typing.cast(type[Any], kind), (*path, field.name))
        else:
            found.append(_Leaf((*path, field.name), kind, field))
    names = [leaf.name for leaf in found]
    assert len(names) == len(set(names)), f"setting names repeat in {tree.__name__}"
    return found


def _read_flags(
    leaves: Mapping[str, _Leaf], argv: Sequence[str], faults: _Faults
) -> tuple[dict[str, str], Path | None]:
    by_flag = {leaf.flag: leaf for leaf in leaves.values()}
    given: dict[str, str] = {}
    config: Path | None = None
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        leaf = by_flag.get(flag)
        if leaf is None and flag != "--config":
            faults.add(f"{word}: no such setting (try --help)")
            continue
        if not equals:
            if leaf is not None and leaf.kind is bool:
                value = "true"
            else:
                following = next(words, None)
                if following is None:
                    faults.add(f"{flag}: a value is missing", leaf)
                    continue
                value = following
        if leaf is None:
            config = Path(value)
        else:
            given[leaf.name] = value
    return given, config


def _read_file(tree: type[Any], path: Path, faults: _Faults) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only a process with a settings file pays for the parser

    try:
        document = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        faults.add(f"{path}: {error}")
        return {}
    values: dict[str, Any] = {}
    _read_section(tree, document, str(path), "", values, faults)
    return values


def _read_section(
    tree: type[Any], section: Any, source: str, prefix: str, values: dict[str, Any], faults: _Faults
) -> None:
    if not isinstance(section, dict):
        faults.add(f"{source}: {prefix or 'the document'} must be a mapping")
        return
    kinds = typing.get_type_hints(tree)
    known = {field.name: field for field in dataclasses.fields(tree)}
    for key, value in section.items():
        where = f"{prefix}{key}"
        if key not in known:
            faults.add(f"{source}: {where}: unknown key (known here: {', '.join(sorted(known))})")
        elif dataclasses.is_dataclass(kinds[key]):
            _read_section(typing.cast(type[Any], kinds[key]), value, source, f"{where}.", values, faults)
        else:
            leaf = _Leaf((key,), kinds[key], known[key])
            text = ",".join(map(str, value)) if isinstance(value, list) else _plain(value)
            _convert_into(values, leaf, text, f"{source}: {where}", faults)


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else "" if value is None else str(value)


def _convert_into(values: dict[str, Any], leaf: _Leaf, text: str, source: str, faults: _Faults) -> None:
    try:
        values[leaf.name] = _convert(leaf.kind, text)
    except ValueError as error:
        faults.add(f"{source}: {error}", leaf)


def _convert(kind: Any, text: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if text == "" else _convert(inner[0], text)
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is not a number")
        if number < 0:
            raise ValueError(f"{text} is negative")
        return number
    return kind(text)


def _build(tree: type[T], values: Mapping[str, Any]) -> T:
    kinds = typing.get_type_hints(tree)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, tree)):
        if dataclasses.is_dataclass(kinds[field.name]):
            arguments[field.name] = _build(typing.cast(type[Any], kinds[field.name]), values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return tree(**arguments)


def _help(program: str, tree: type[Any], leaves: typing.Iterable[_Leaf]) -> str:
    lines = [f"usage: {program} [--config FILE] [--SETTING VALUE ...]", "", (tree.__doc__ or "").strip(), ""]
    example = ""
    for leaf in leaves:
        metadata = leaf.field.metadata
        example = f"{leaf.flag} is {leaf.variable}"
        default = "required" if metadata["required"] else f"default {leaf.field.default}"
        lines.append(f"  {leaf.flag:<28} {metadata['meaning']} ({default})")
    lines.append(f"\nEach setting is also an environment variable: {example}.")
    return "\n".join(lines)
