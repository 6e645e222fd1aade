"""Settings of an installation: the chart's defaults, files and `--set`, read as Helm reads them but strictly.

What the chart does not know is refused with near names, and so is a value of another type than the default's. A
mapping whose default is empty takes any keys (labels, node selectors), and so does what Kubernetes defines (resources).
`{}` is an empty list here; Helm makes a list of one empty text of it.
"""

import copy
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]

# Mappings of Kubernetes' own: their keys are not the chart's.
_OPEN = {"resources", "nodeSelector", "labels"}


def is_open(key: str, default: Mapping[str, Any]) -> bool:
    """Whether a mapping takes any keys."""
    return not default or key in _OPEN


class BadValues(Exception):
    """Settings cannot be used; the message names each that is wrong."""


def chosen(
    defaults: Values, files: Iterable[Path], assignments: Iterable[str], earlier: Values | None = None
) -> Values:
    """What is set beside the defaults: by an earlier choice, then files in order, then assignments (`a.b=c`).

    A list that is given replaces the default's as a whole; items that are assigned one by one build up a given list.
    Raises BadValues with every fault.
    """
    given: Values = copy.deepcopy(earlier or {})
    faults: list[str] = []
    for path in files:
        try:
            document = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            faults.append(f"{path}: {error}")
            continue
        if isinstance(document, dict):
            _merge(given, document)
        else:
            faults.append(f"{path}: is not a mapping of settings")
    for text in assignments:
        for one in _split(text, ","):
            _assign(given, one, faults)
    given = _checked(given, defaults, "", faults)
    if faults:
        raise BadValues("\n".join(faults))
    return given


def complete(defaults: Values, given: Values) -> Values:
    """Defaults with what was chosen over them."""
    values = copy.deepcopy(defaults)
    _merge(values, given)
    return values


def merged(defaults: Values, files: Iterable[Path], assignments: Iterable[str]) -> Values:
    """Defaults, files and assignments together; raises BadValues with every fault."""
    return complete(defaults, chosen(defaults, files, assignments))


def assignments_between(now: Values, then: Values, path: str = "") -> list[str]:
    """What `--set` has to say to get from some settings to others, both complete; nothing goes away by it."""
    found: list[str] = []
    for key, value in then.items():
        where, old = path + key.replace(".", r"\."), now.get(key)
        if isinstance(value, dict):
            found += assignments_between(old if isinstance(old, dict) else {}, value, f"{where}.")
        elif isinstance(value, list) and value != old and any(isinstance(item, dict) for item in value):
            for at, item in enumerate(value):
                found += assignments_between({}, item, f"{where}[{at}].")
        elif value != old:
            found.append(f"{where}={_written(value)}")
    return found


def _written(value: Any) -> str:
    if isinstance(value, list):
        return "{" + ",".join(map(_written, value)) + "}"
    return json.dumps(value) if isinstance(value, bool) else str(value).replace(",", r"\,")


def _merge(values: Values, changes: Values) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = copy.deepcopy(value)


def _checked(given: Values, known: Mapping[str, Any], path: str, faults: list[str]) -> Values:
    """What is given, as the types of the defaults ask; what cannot be used becomes a fault."""
    found: Values = {}
    for key, value in given.items():
        where = f"{path}{key}"
        if key not in known:
            faults.append(f"{where}: {_unknown(str(key), known)}")
            continue
        default = known[key]
        if isinstance(default, str) and type(value) in (int, float):
            value = str(value)  # noqa: PLW2901 - a version, an account: the text that was written
        if type(value) is not type(default):
            faults.append(f"{where}: takes {_WORDS[type(default)]}, not {'nothing' if value is None else repr(value)}")
        elif isinstance(value, dict) and not is_open(str(key), default):
            found[key] = _checked(value, default, f"{where}.", faults)
        else:
            found[key] = value
    return found


def _assign(given: Values, text: str, faults: list[str]) -> None:
    """`a.b=c`, `a[0].b=c` or `a={b,c}`, in place."""
    path, equals, raw = text.partition("=")
    steps = _steps(path)
    if not equals or not steps or isinstance(steps[0], int):
        faults.append(f"--set {text}: takes name=value")
        return
    at: Any = given
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        fits = isinstance(at, list) and step <= len(at) if isinstance(step, int) else isinstance(at, dict)
        if not fits:
            what = f"there is no item {step} and the one before it is missing" if isinstance(at, list) else "is no list"
            faults.append(f"--set {path}: {what if isinstance(step, int) else f'there is nothing to have a {step!r}'}")
            return
        value = _read(raw) if following is None else [] if isinstance(following, int) else {}
        if isinstance(step, int) and step == len(at):
            at.append(value)
        elif following is None or (step not in at and not isinstance(step, int)):
            at[step] = value
        at = at[step]


_WORDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    list: "a list, as {a,b}",
    dict: "a mapping",
}


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return (
        f"no such setting; did you mean {near[0]}?" if near else f"no such setting; known: {', '.join(sorted(known))}"
    )


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    for part in _split(path, "."):
        name, *indexes = re.split(r"\[(\d+)\]", part)
        steps += [name.replace("\\", ""), *(int(index) for index in indexes if index)]
    return [step for step in steps if step != ""]


def _read(raw: str) -> Any:
    if raw.startswith("{") and raw.endswith("}"):
        return [_read(item) for item in _split(raw[1:-1], ",")] if raw != "{}" else []
    if raw in ("true", "false"):
        return raw == "true"
    if raw == "null":
        return None
    if re.fullmatch(r"0|-?[1-9]\d*", raw):
        return int(raw)
    return re.sub(r"\\(.)", r"\1", raw)


def _split(text: str, mark: str) -> list[str]:
    """Parts at a mark that is neither escaped nor within braces."""
    parts, depth, part, escaped = [], 0, "", False
    for letter in text:
        if letter == mark and not depth and not escaped:
            parts.append(part)
            part = ""
            continue
        depth += (letter == "{") - (letter == "}") if not escaped else 0
        escaped = letter == "\\" and not escaped
        part += letter
    return [*parts, part]
