"""Running a user's script or module as `python` would, with its trainings watched from the moment it imports Keras.

Nothing here imports TensorFlow or Keras: the script does, after it has set what they read when they start.
"""

from __future__ import annotations

import os
import sys
import types
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from io import open_code
from pathlib import Path
from typing import TYPE_CHECKING, Any

import precscope
from precscope.errors import PrecScopeError
from precscope.probes.watched_training import TrainingWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.options import Options

__all__ = ["Program", "find_program", "run_program"]

_OUR_FOLDERS = tuple(
    f"{folder.resolve()}{os.sep}" for folder in (Path(precscope.__file__).parent, Path(__file__).parent)
)


class Program:
    """What `python` is to run.

    Args:
        name: A path, or the name of a module.
        arguments: The program's own.
        is_module: Whether `name` is that of a module.
    """

    def __init__(self, name: str, arguments: Sequence[str], is_module: bool) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.is_module = is_module

    @property
    def import_folder(self) -> str:
        """What `python` puts first into `sys.path`."""
        return str(Path.cwd()) if self.is_module else str(Path(self.name).resolve().parent)

    def load(self) -> tuple[types.CodeType, dict[str, Any]]:
        """Return the code, and what its module's namespace begins with.

        Raises:
            PrecScopeError: There is no such module.
        """
        if not self.is_module:
            path = str(Path(self.name).absolute())
            with open_code(path) as file:
                code = compile(file.read(), path, "exec", dont_inherit=True)
            return code, _namespace(path, SourceFileLoader("__main__", path), None)
        spec = _module_to_run(self.name)
        loader: Any = spec.loader
        sys.argv[0] = str(spec.origin)
        return loader.get_code(spec.name), _namespace(spec.origin, loader, spec)


def find_program(name: str, arguments: Sequence[str], is_module: bool) -> Program:
    """Return the program `name`; a module is looked for when it runs, for its packages are run then.

    Raises:
        PrecScopeError: There is no such file.
    """
    if not is_module and not Path(name).is_file():
        hint = " A package is run with -m." if Path(name).is_dir() else ""
        raise PrecScopeError(f"There is no script '{name}', seen from '{Path.cwd()}'.{hint} Expected a Python file.")
    return Program(name, arguments, is_module)


def run_program(program: Program, base: Path, options: Options, policy: str | None = None) -> None:
    """Run a program as `__main__` of this process, and say at its end where the runs of its trainings are.

    `sys.argv`, `sys.path` and `__main__` stay the program's: its threads and exit handlers run after this.

    Args:
        program: What to run.
        base: The directory under which the runs go.
        options: The sessions' options.
        policy: Keras' global dtype policy when the program has imported Keras; it may set another. None leaves it.

    Raises:
        BaseException: Whatever the program raises, SystemExit among it. Where nobody catches it, the interpreter
            prints it without our frames.
    """
    sys.argv[:] = ["-m" if program.is_module else program.name, *program.arguments]
    if not sys.flags.safe_path:
        sys.path[:1] = [program.import_folder]
    watch = TrainingWatch(base, options)

    def begin(keras: Any) -> None:
        if policy is not None:
            keras.config.set_dtype_policy(policy)
        watch.install(keras)

    hook = _KerasImport(begin)
    error: BaseException | None = None
    try:
        code, namespace = _loaded(program)
        main = types.ModuleType("__main__")
        vars(main).update(namespace)
        sys.modules["__main__"] = main
        exec(code, vars(main))
    except BaseException as raised:
        error = raised
        raise
    finally:
        hook.remove()
        watch.close(error)
        account = watch.account()
        if error is None or isinstance(error, SystemExit):
            watch.tell(account)
        else:
            _when_printed(lambda: watch.tell(account))


def _loaded(program: Program) -> tuple[types.CodeType, dict[str, Any]]:
    """Load a program; a module that is not there is a wrong call of ours, not an exception of the program's."""
    try:
        return program.load()
    except PrecScopeError as error:
        print(f"precscope: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _namespace(path: str | None, loader: Any, spec: ModuleSpec | None) -> dict[str, Any]:
    cached = None if spec is None else spec.cached
    package = None if spec is None else spec.parent
    return {
        "__file__": path,
        "__cached__": cached,
        "__loader__": loader,
        "__package__": package,
        "__spec__": spec,
        "__builtins__": sys.modules["builtins"],
    }


def _module_to_run(name: str) -> ModuleSpec:
    """Return what `python -m name` runs: the module, or `__main__` of a package. The packages above it are imported."""
    reason = ""
    try:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a package of the program's imports what is not there
        spec, reason = None, f" ({error})"
    except (TypeError, ValueError) as error:  # what find_spec thinks of "..", "" and the like
        spec, reason = None, f" ({error})"
    if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        hint = f" For a file leave out -m: precscope run {name}" if name.endswith(".py") else ""
        raise PrecScopeError(f"There is no module {name!r} to run, seen from '{Path.cwd()}'{reason}.{hint}")
    return spec


class _KerasImport(MetaPathFinder):
    """Calls `then` with Keras, once, as soon as the program has imported it, by whatever way.

    Others may watch imports as well (tracers do): they are asked as finders, may ask us while they search, and what
    they put around the loading stays there.
    """

    def __init__(self, then: Callable[[Any], None]) -> None:
        self._then = then
        self._searching = False
        if "keras" in sys.modules:
            then(sys.modules["keras"])
        else:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Look no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Let the other finders find Keras, and have its loader tell when it is done."""
        if fullname != "keras" or self._searching:
            return None
        self._searching = True
        try:
            others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            found = (finder.find_spec(fullname, path, target) for finder in others)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        load, own = loader.exec_module, getattr(loader, "__dict__", {}).get("exec_module")

        def exec_module(module: types.ModuleType) -> None:
            if own is None:
                del loader.exec_module
            else:
                loader.exec_module = own
            load(module)
            if self in sys.meta_path:
                self.remove()
                self._then(module)

        with suppress(AttributeError, TypeError):  # a loader that takes no attributes loads without us
            loader.exec_module = exec_module


def _when_printed(say: Callable[[], None]) -> None:
    """Have the exception that ends the process printed, by whoever prints such, without our frames; then call `say`.

    A traceback is long: what stands above it is not read. By then nothing may be imported any more: Python forgets that
    Ctrl-C is what ends it where code is compiled from text, as dataclasses do, and would not end by the signal.
    """
    then = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        sys.excepthook = then
        seen: set[int] = set()
        pending: list[BaseException | None] = [error]
        while pending:
            one = pending.pop()
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                one.__traceback__ = _without_our_frames(one.__traceback__)
                pending += [one.__cause__, one.__context__]
        try:
            then(kind, error, error.__traceback__)
        finally:
            say()

    sys.excepthook = hook


def _without_our_frames(traceback: types.TracebackType | None) -> types.TracebackType | None:
    entries: list[types.TracebackType] = []
    while traceback is not None:
        if traceback.tb_frame.f_code is run_program.__code__:
            entries.clear()  # the command line
        elif not os.path.realpath(traceback.tb_frame.f_code.co_filename).startswith(_OUR_FOLDERS):
            entries.append(traceback)
        traceback = traceback.tb_next
    result = None
    for entry in reversed(entries):
        result = types.TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result
