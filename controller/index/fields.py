"""Reading untyped documents: every step knows its path, every fault names the field."""

import sys
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from typing import Any


class ObjectFault(ValueError):
    """An object is malformed; `path` is the field, the text says what is wrong with it."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}" if path else what)
        self.path = path
        self.what = what


class Field:
    """One place in a document. An absent field reads as empty; a wrong type raises ObjectFault."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.value = value
        self.path = path

    def __getitem__(self, name: str) -> "Field":
        path = f"{self.path}.{name}" if self.path else name
        return Field(self._mapping().get(name), path)

    @property
    def is_set(self) -> bool:
        """The field is there and not null."""
        return self.value is not None

    def fault(self, what: str) -> ObjectFault:
        """The fault to raise about this field."""
        return ObjectFault(self.path, what)

    def text(self, default: str = "") -> str:
        """A string, interned: names and labels repeat over thousands of objects."""
        if self.value is None:
            return default
        if not isinstance(self.value, str):
            raise self.fault(f"must be a string, is {_kind(self.value)}")
        return sys.intern(self.value)

    def required_text(self) -> str:
        """A string that must be there."""
        if not (text := self.text()):
            raise self.fault("is missing")
        return text

    def boolean(self, default: bool = False) -> bool:
        """True or false."""
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.fault(f"must be true or false, is {_kind(self.value)}")
        return self.value

    def port(self) -> int:
        """A port number, also as the text that policies write."""
        value = self.value
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
            raise self.fault(f"{self.value!r} is not a port")
        return value

    def address(self) -> bytes:
        """An IP address, packed."""
        text = self.text()
        try:
            return ip_address(text).packed
        except ValueError:
            raise self.fault(f"{text!r} is not an IP address") from None

    def items(self) -> Iterator["Field"]:
        """The elements of a list."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.fault(f"must be a list, is {_kind(self.value)}")
        for position, value in enumerate(self.value):
            yield Field(value, f"{self.path}[{position}]")

    def texts(self) -> tuple[str, ...]:
        """A list of strings, none of them empty."""
        return tuple(item.required_text() for item in self.items())

    def entries(self) -> Iterator[tuple[Any, "Field"]]:
        """The keys and values of a mapping."""
        for key, value in self._mapping().items():
            yield key, Field(value, f"{self.path}.{key}")

    def labels(self) -> dict[str, str]:
        """A mapping of strings to strings."""
        found: dict[str, str] = {}
        for key, value in self.entries():
            if not isinstance(key, str):
                raise value.fault(f"key {key!r} must be a string")
            found[sys.intern(key)] = value.text()
        return found

    def only(self, known: Collection[str]) -> "Field":
        """Refuse fields that are not known: a misspelt condition must not vanish from a policy."""
        for key, value in self.entries():
            if key not in known:
                raise value.fault(f"is not a known field here (known: {', '.join(sorted(known))})")
        return self

    def _mapping(self) -> dict[Any, Any]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.fault(f"must be a mapping, is {_kind(self.value)}")
        return self.value


def _kind(value: Any) -> str:
    names = {str: "a string", bool: "a truth value", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "a mapping" if isinstance(value, dict) else "empty")
