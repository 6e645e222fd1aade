"""Tables and lists for people: a header and rows, columns as wide as their widest cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines; an empty cell becomes a dash, so that columns can be counted."""
    cells = [list(header), *([str(cell) if cell not in ("", None) else "-" for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def merged(by_node: Mapping[str, Iterable[Sequence[Any]]]) -> list[tuple[Any, ...]]:
    """Rows of several nodes, each once, with the nodes that have it in a last column: `all` of them or their names."""
    nodes: dict[tuple[Any, ...], list[str]] = {}
    for node, rows in by_node.items():
        for row in rows:
            nodes.setdefault(tuple(row), []).append(node)
    return [(*row, "all" if len(have) == len(by_node) > 1 else ",".join(have)) for row, have in sorted(nodes.items())]


def some(names: Sequence[str], most: int = 5) -> str:
    """A list that stays readable."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
