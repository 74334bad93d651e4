"""Finding a user's function by `MODULE:FUNCTION` or `FILE.py:FUNCTION`, as several commands take it."""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precscope.error_text import where_it_failed
from precscope.errors import PrecScopeError
from precscope.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["EntryPointError", "load_entry_point", "split_entry_point"]

_EXPECTED = "Expected MODULE:FUNCTION (such as my_package.training:build) or a file (such as train.py:build)"


class EntryPointError(PrecScopeError):
    """A function that was named as `MODULE:FUNCTION` cannot be had."""


def split_entry_point(name: str) -> tuple[str, str]:
    """Return the module (or file) and the function that `name` names; nothing is imported.

    Raises:
        EntryPointError: `name` is not of the form `MODULE:FUNCTION`, or its file does not exist.
    """
    module, colon, function = name.rpartition(":")
    if not (colon and module and all(part.isidentifier() for part in function.split("."))):
        raise EntryPointError(f"{_EXPECTED}, got {name!r}.")
    if _is_file(module):
        if not Path(module).is_file():
            raise EntryPointError(f"There is no file {module!r} (from {name!r}), seen from '{Path.cwd()}'.")
    elif not all(part.isidentifier() for part in module.split(".")):
        raise EntryPointError(f"{module!r} is no name of a module. {_EXPECTED}, got {name!r}.")
    return module, function


def load_entry_point(name: str) -> Callable[..., Any]:
    """Return the function that `name` names, importing its module as `python -m` or `python FILE` would find it.

    Raises:
        EntryPointError: The form is wrong, there is no such module or function, or importing it failed.
    """
    module_name, function_name = split_entry_point(name)
    module = _import(module_name)
    found: Any = module
    for part in function_name.split("."):
        if not hasattr(found, part):
            callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            hint = did_you_mean(function_name, callables)
            raise EntryPointError(f"{module_name!r} has no function {function_name!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise EntryPointError(f"{name!r} is no function but of type {type(found).__name__}.")
    return found  # type: ignore[no-any-return]  # narrowed from Any


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module


def _import(name: str) -> ModuleType:
    try:
        return _import_file(Path(name)) if _is_file(name) else _import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            needed_by = "" if error.name == name else f" (for {name!r})"
            raise EntryPointError(
                f"There is no module {error.name!r}{needed_by} in '{Path.cwd()}' or among what is installed."
            ) from None
        raise EntryPointError(f"Importing {name!r} failed: {where_it_failed(error)}") from error
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        raise EntryPointError(f"Importing {name!r} failed: {where_it_failed(error)}") from error


def _import_module(name: str) -> ModuleType:
    _put_on_path(Path.cwd())
    return importlib.import_module(name)


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name that no other module has, with its folder and the working directory on the path."""
    path = path.resolve()
    _put_on_path(Path.cwd())
    _put_on_path(path.parent)
    name = f"precscope_file_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EntryPointError(f"'{path}' is no Python file.")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and Keras' registration look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
