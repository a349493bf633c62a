"""Registry: names to classes or functions, so that a config can choose by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Registry:
    """Objects by their ``__name__``. ``register`` serves as decorator and as plain call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Callable | None:
        """Add an object; with ``force`` it may replace one of the same name.

        Raises:
            KeyError: the name is taken and ``force`` is off.
        """
        if obj is not None:
            self._add(obj, force)
            return None

        def decorate(target: Any) -> Any:
            self._add(target, force)
            return target

        return decorate

    def get(self, name: str) -> Any:
        """Look a name up.

        Raises:
            KeyError: with the registered names.
        """
        if name not in self._objects:
            known = ", ".join(self._objects) or "none"
            raise KeyError(f"{self._name} registry has no {name!r}. Registered: {known}")
        return self._objects[name]

    def registered_names(self) -> list[str]:
        return list(self._objects)

    def _add(self, obj: Any, force: bool) -> None:
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(f"{self._name} registry already has {name!r}; use another name.")
        self._objects[name] = obj
