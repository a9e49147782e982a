"""How face swapping really works: a course, and the library it builds. Nothing heavy is loaded before a name is used."""

__version__ = "0.1.0"

from importlib import import_module as _import_module

from ._api import PUBLIC as _PUBLIC, STABLE as _STABLE

__all__ = list(_STABLE)


def __getattr__(name):
    "A stable name, or a module, loaded when it is first asked for (PEP 562)."
    if name in _STABLE:
        return getattr(_import_module(f"deepswap.{_STABLE[name]}"), name)
    if name in _PUBLIC:
        return _import_module(f"deepswap.{name}")
    homes = [m for m, names in _PUBLIC.items() if name in names.split()]
    raise AttributeError(f"module 'deepswap' has no attribute {name!r}" + (f"; it is in deepswap.{homes[0]}" if homes else ""))


def __dir__():
    return sorted({*globals(), *_STABLE, *_PUBLIC})
