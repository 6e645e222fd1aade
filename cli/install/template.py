"""The part of Helm's template language that the chart is written in, so that nobody needs Helm to install.

Understood: text with `{{- … -}}` trimming, comments, `define`, `if`/`else if`/`else`, `with`, `range` over a list,
pipelines with parentheses, `.`, `.Field.field`, texts, numbers, true and false, and the functions of FUNCTIONS besides
`include`. Everything else is an error that says where, never a guess. A field that does not exist is an error too,
where Helm prints nothing. A test holds what comes out equal to `helm template` for many settings.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml


class TemplateFault(Exception):
    """A template cannot be rendered, or says that its settings cannot be used; the message says why."""


class SettingsRefused(TemplateFault):
    """The template itself refuses (`fail`): the message is the chart's sentence."""


_ACTION = re.compile(r"\{\{(- )?\s*(/\*.*?\*/|.*?)\s*( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+)|(?P<field>\.[\w.]*)|(?P<word>\w+)|(?P<mark>[()|]))'
)


@dataclass(slots=True)
class _Block:
    """Nodes in order; a node is a text, a pipeline or a branch."""

    nodes: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pipeline:
    commands: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class _Call:
    name: str


@dataclass(frozen=True, slots=True)
class _Field:
    names: tuple[str, ...]


@dataclass(slots=True)
class _Branch:
    """`if`, `with` or `range`; the block of the first case that holds is rendered."""

    word: str
    cases: list[tuple[_Pipeline | None, _Block]]


class Template:
    """A chart's templates together: what one defines, all may include."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._defined: dict[str, _Block] = {}
        self._files = {name: _Parser(name, text, self._defined).parse() for name, text in files.items()}

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        """The text of one file; raises TemplateFault."""
        try:
            return self._block(self._files[name], values)
        except TemplateFault as fault:
            raise type(fault)(f"{name}: {fault}" if type(fault) is TemplateFault else str(fault)) from fault

    def _block(self, block: _Block, dot: Any) -> str:
        return "".join(self._node(node, dot) for node in block.nodes)

    def _node(self, node: Any, dot: Any) -> str:
        if isinstance(node, str):
            return node
        if isinstance(node, _Pipeline):
            return _shown(self._value(node, dot))
        return self._branch(node, dot)

    def _branch(self, branch: _Branch, dot: Any) -> str:
        for condition, block in branch.cases:
            value: Any = True if condition is None else self._value(condition, dot)
            if not value:
                continue
            if branch.word == "range" and condition is not None:
                return "".join(self._block(block, item) for item in value)
            return self._block(block, value if branch.word == "with" and condition is not None else dot)
        return ""

    def _value(self, pipeline: _Pipeline, dot: Any) -> Any:
        passed: list[Any] = []
        for command in pipeline.commands:
            passed = [self._command(command, passed, dot)]
        return passed[0]

    def _command(self, command: Sequence[Any], passed: Sequence[Any], dot: Any) -> Any:
        first, *rest = command
        arguments = [*(self._operand(operand, dot) for operand in rest), *passed]
        if not isinstance(first, _Call):
            if arguments:
                raise TemplateFault(f"{first!r} takes no arguments")
            return self._operand(first, dot)
        if first.name == "include":
            name, inner = arguments
            if name not in self._defined:
                raise TemplateFault(f"nothing is defined as {name!r}")
            return self._block(self._defined[name], inner)
        try:
            return FUNCTIONS[first.name](*arguments)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise TemplateFault(f"{first.name}: {error}") from error

    def _operand(self, operand: Any, dot: Any) -> Any:
        if isinstance(operand, _Pipeline):
            return self._value(operand, dot)
        if isinstance(operand, _Call):
            return self._command((operand,), (), dot)
        if not isinstance(operand, _Field):
            return operand
        for name in operand.names:
            if not isinstance(dot, Mapping) or name not in dot:
                raise TemplateFault(f"there is no .{'.'.join(operand.names)}")
            dot = dot[name]
        return dot


class _Parser:
    """One file as nodes. `defined` collects what it defines."""

    def __init__(self, name: str, text: str, defined: dict[str, _Block]) -> None:
        self._name = name
        self._text = text
        self._defined = defined
        self._open: list[tuple[str, Any, _Block]] = [("file", None, _Block())]

    def parse(self) -> _Block:
        """The file's nodes; raises TemplateFault."""
        at, trims = 0, False
        for action in _ACTION.finditer(self._text):
            text = self._text[at : action.start()]
            text = text.lstrip() if trims else text
            self._add(text.rstrip() if action[1] else text)
            at, trims = action.end(), bool(action[3])
            try:
                self._action(action[2])
            except TemplateFault as fault:
                line = self._text.count("\n", 0, action.start()) + 1
                raise TemplateFault(f"{self._name}:{line}: {fault}") from fault
        rest = self._text[at:]
        self._add(rest.lstrip() if trims else rest)
        if len(self._open) != 1:
            raise TemplateFault(f"{self._name}: `{self._open[-1][0]}` without `end`")
        return self._open[0][2]

    def _add(self, node: Any) -> None:
        if node != "":
            self._open[-1][2].nodes.append(node)

    def _action(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if text.startswith("/*"):
            return
        if word in ("if", "with", "range"):
            block = _Block()
            self._open.append((word, _Branch(word, [(_pipeline(rest), block)]), block))
        elif word == "define":
            self._open.append((word, json.loads(rest), _Block()))
        elif word == "else":
            self._else(rest)
        elif word == "end":
            self._end()
        else:
            self._add(_pipeline(text))

    def _else(self, rest: str) -> None:
        word, branch, _ = self._open[-1]
        if not isinstance(branch, _Branch):
            raise TemplateFault("`else` without `if`")
        if rest and not rest.startswith("if "):
            raise TemplateFault(f"`else {rest}` is not understood")
        block = _Block()
        branch.cases.append((_pipeline(rest.removeprefix("if ")) if rest else None, block))
        self._open[-1] = (word, branch, block)

    def _end(self) -> None:
        word, what, block = self._open.pop()
        if word == "file":
            raise TemplateFault("`end` without a beginning")
        if word == "define":
            self._defined[what] = block
        else:
            self._add(what)


def _pipeline(text: str) -> _Pipeline:
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or token.lastgroup is None:
            raise TemplateFault(f"`{text}` is not understood at `{text[at:]}`")
        tokens.append((token.lastgroup, token[token.lastgroup]))
        at = token.end()
    pipeline = _commands(tokens)
    if tokens:
        raise TemplateFault(f"`{text}`: `{tokens[0][1]}` too many")
    return pipeline


def _commands(tokens: list[tuple[str, str]]) -> _Pipeline:
    commands: list[tuple[Any, ...]] = []
    operands: list[Any] = []
    while tokens and tokens[0][1] != ")":
        kind, text = tokens.pop(0)
        if text == "|" and kind == "mark":
            commands.append(tuple(operands))
            operands = []
        elif text == "(" and kind == "mark":
            operands.append(_commands(tokens))
            if not tokens:
                raise TemplateFault("`(` without `)`")
            tokens.pop(0)
        else:
            operands.append(_operand(kind, text))
    commands.append(tuple(operands))
    if not all(commands):
        raise TemplateFault("a part of a pipeline is empty")
    return _Pipeline(tuple(commands))


def _operand(kind: str, text: str) -> Any:
    if kind == "text":
        return json.loads(text)
    if kind == "number":
        return int(text)
    if kind == "field":
        return _Field(tuple(name for name in text.split(".") if name))
    if text in ("true", "false"):
        return text == "true"
    if text != "include" and text not in FUNCTIONS:
        raise TemplateFault(f"`{text}` is no function that is known here")
    return _Call(text)


def _shown(value: Any) -> str:
    """As Go prints it."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=False).removesuffix("\n").removesuffix("\n...")


def _indent(width: int, text: str) -> str:
    return "\n".join(" " * width + line for line in text.split("\n"))


def _fail(sentence: str) -> None:
    raise SettingsRefused(sentence)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": lambda *numbers: sum(numbers),
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "default": lambda fallback, value: value or fallback,
    "eq": lambda one, *others: one in others,
    "fail": _fail,
    "gt": lambda one, other: one > other,
    "has": lambda item, items: item in items,
    "index": lambda items, at: items[at],
    "int": int,
    "join": lambda between, items: between.join(map(_shown, items)),
    "list": lambda *items: list(items),
    "ne": lambda one, other: one != other,
    "nindent": lambda width, text: "\n" + _indent(width, text),
    "not": lambda value: not value,
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "quote": lambda value: json.dumps(_shown(value)),
    "toYaml": _to_yaml,
}
