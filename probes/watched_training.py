"""Every `fit` and `train_on_batch` of every Keras model, each model with a session and a run directory of its own.

Both methods are replaced on `keras.Model` while a program runs; a subclass that overrides them comes here when it calls
those of its parent. This module imports neither TensorFlow nor Keras before a model is trained.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precscope.error_text import failure_in_a_line
from precscope.probes.own_loops import OwnLoopWatch
from precscope.program_summary import summary
from precscope.run_names import claim_run_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.options import Options
    from precscope.probes.session import Session

__all__ = ["TrainingWatch"]

Method = Literal["fit", "train_on_batch"]
_METHODS: tuple[Method, ...] = ("fit", "train_on_batch")
_CALLBACKS = 5  # position of fit's argument `callbacks`
_MOST_OPEN = 8  # sessions between two calls: each keeps its model


class _Watched:
    """A model with an open session, and how many of its trainings are going on."""

    def __init__(self, model: Any, session: Session, compilation: Any) -> None:
        self.model = model
        self.session = session
        self.compilation = compilation
        self.method: Method = "fit"
        self.running = 0


class TrainingWatch:
    """Opens a session when a model begins to train, and keeps it while that model trains on.

    Args:
        base: The directory under which the runs go.
        options: The sessions' options.
    """

    def __init__(self, base: Path, options: Options) -> None:
        self._base = base
        self._options = options
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._undo: list[Callable[[], None]] = []
        self._open: list[_Watched] = []  # the one that was used last comes last
        self._begun: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._runs: list[tuple[Path, str]] = []  # run directory and model's name
        self._told: set[str] = set()
        self._sees_keras = False
        self._calls = 0  # of the methods that are watched, whether they are recorded or not
        self._loops: OwnLoopWatch | None = None

    def install(self, keras: Any) -> None:
        """Watch the models of this Keras from now on."""
        self._sees_keras = True
        backend = keras.backend.backend()
        if backend != "tensorflow":
            self._tell(f"Keras runs on {backend!r} here, so nothing is recorded: set KERAS_BACKEND=tensorflow.")
            return
        self._undo += [self._replace(keras.Model, method) for method in _METHODS]
        self._loops = OwnLoopWatch(keras, self._is_known)
        self._undo.append(self._loops.close)

    def _replace(self, model_class: Any, method: Method) -> Callable[[], None]:
        original = getattr(model_class, method)
        own = vars(model_class).get(method)  # none: Keras has them in a base class

        @functools.wraps(original)
        def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
            one = self._begin(model, method, args, kwargs)
            self._count(1)
            try:
                result = original(model, *args, **kwargs)
            except BaseException as error:
                self._pause(one, error)
                raise
            finally:
                self._count(-1)
            self._pause(one)
            return result

        setattr(model_class, method, watched)
        return lambda: delattr(model_class, method) if own is None else setattr(model_class, method, own)

    def close(self, error: BaseException | None) -> None:
        """Put Keras' methods back and close the sessions.

        Args:
            error: What ended the program; None where it came to its end.
        """
        for undo in self._undo:
            undo()
        if os.getpid() != self._process:
            return
        with self._lock:
            for one in list(self._open):
                if not one.running:  # a thread that still trains closes its own
                    self._close(one, error if one.method == "train_on_batch" else None)
            self._undo.clear()

    # Around one call.

    def _begin(self, model: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Watched | None:
        """Return the model as watched; None where this call is to train as without us."""
        if os.getpid() != self._process or not self._undo:
            return None  # a fork of the program, or after its end
        try:
            with self._lock:
                one = self._watched(model, method, args, kwargs)
                if one is not None:
                    one.running += 1
                    one.method = method
                return one
        except Exception as error:  # whatever it is, the training goes on
            self._tell_of(model, error)
            return None

    def _watched(self, model: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Watched | None:
        from precscope.probes.internals import train_functions
        from precscope.probes.session import is_profiled

        one = next((one for one in self._open if one.model is model), None)
        if one is not None and one.running:  # inside its own fit
            return None
        compilation = train_functions.compilation(model)
        if one is not None and one.compilation is not compilation:
            self._close(one)
            one = None
        if method == "fit" and _has_our_callback(args, kwargs):
            return None
        if one is not None:
            self._open.remove(one)
            self._open.append(one)
            return one
        if is_profiled(model):
            self._tell(f"model {model.name!r} is profiled by the program itself, so it gets no run from here.")
            return None
        self._make_room()
        return self._opened(model, compilation)

    def _make_room(self) -> None:
        """Let go of models that the program may have let go of.

        A model that was closed here and trains again takes turns with others (a GAN by `fit`): it is kept from then on,
        for else it would be compiled anew at each turn.
        """
        for one in list(self._open):
            if not one.running and one.method == "fit" and self._begun[one.model] == 1:
                self._close(one)
        idle = [one for one in self._open if not one.running]
        for one in idle[: max(0, len(self._open) + 1 - _MOST_OPEN)]:
            self._close(one)

    def _opened(self, model: Any, compilation: Any) -> _Watched:
        from precscope.probes.session import profile

        session = profile(model, self._base, options=self._options)  # refuses a model before a directory is made for it
        session.path = claim_run_directory(self._base, model.name)
        session.__enter__()
        one = _Watched(model, session, compilation)
        session.give_way = lambda: self._close(one)
        self._begun[model] = self._begun.get(model, 0) + 1
        self._runs.append((Path(session.path), model.name))
        self._open.append(one)
        return one

    def _count(self, change: int) -> None:
        with self._lock:
            self._calls += change

    def _is_known(self) -> bool:
        """Tell whether what trains now does so in a method that is watched, or in a session of the program's own."""
        if self._calls or os.getpid() != self._process:
            return True
        sessions: Any = sys.modules.get("precscope.probes.session")
        ours = {id(one.session) for one in self._open}
        return sessions is not None and any(id(session) not in ours for session in sessions.open_sessions())

    def _pause(self, one: _Watched | None, error: BaseException | None = None) -> None:
        """Note that a call is over; one that failed ends the run, and so does one that outlived the program."""
        if one is None:
            return
        with self._lock:
            one.running -= 1
            if error is not None or not self._undo:
                self._close(one, error)

    def _close(self, one: _Watched, error: BaseException | None = None) -> None:
        if one not in self._open or os.getpid() != self._process:
            return
        self._open.remove(one)
        try:
            one.session.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except Exception as failure:  # the program's own exception, or result, goes on
            self._tell_of(one.model, failure)

    # What the user reads.

    def _tell_of(self, model: Any, error: Exception) -> None:
        self._tell(f"model {getattr(model, 'name', '?')!r} trains without us: {failure_in_a_line(error)}")

    def _tell(self, message: str) -> None:
        """Say something once, past what the program does with warnings and its own output."""
        if message not in self._told:
            self._told.add(message)
            with suppress(OSError, ValueError, AttributeError):  # stderr may be closed, or None
                print(f"precscope: {message}", file=sys.stderr, flush=True)

    def account(self) -> list[str]:
        """Return what to tell at the end: where the runs are, or why there are none. A fork is silent."""
        if os.getpid() != self._process:
            return []
        loops = self._loops.advice() if self._loops is not None else None
        said = [] if loops is None else [loops]
        if self._runs:
            return [summary(self._runs), *said]
        if not self._sees_keras:
            started = " Processes that it starts are not watched." if "multiprocessing" in sys.modules else ""
            return [f"no training was recorded: the program did not import Keras 3.{started}"]
        return said or ["no training was recorded: no Keras 3 model was trained by fit or train_on_batch."]

    def tell(self, messages: list[str]) -> None:
        """Print what `account` returned."""
        for message in messages:
            self._tell(message)


def _has_our_callback(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a fit was given a `precscope.Callback`."""
    ours: Any = getattr(sys.modules.get("precscope.probes.callback"), "Callback", None)
    given = kwargs.get("callbacks", args[_CALLBACKS] if len(args) > _CALLBACKS else None)
    listed = getattr(given, "callbacks", given)
    listed = listed if isinstance(listed, (list, tuple)) else [listed]
    return ours is not None and any(isinstance(callback, ours) for callback in listed)
