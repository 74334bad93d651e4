"""A Keras callback that profiles the `fit` it is given to: `precscope.Callback`."""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from precscope.options import Options, resolve_options
from precscope.probes.session import Session, profile

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Callback"]

_made: set[Path] = set()  # run directories of this process' callbacks


class Callback(keras.callbacks.Callback):
    """Profiles the training that it is given to as a callback: `model.fit(x, y, callbacks=[precscope.Callback(...)])`.

    Each fit makes a run: the first in `run_dir`, a second with the same callback, or with another one of this program
    that names the same directory (as in cross-validation), in `run_dir`-2, and so on.

    Args:
        run_dir: A new directory for the run.
        options: A YAML file, a mapping or `precscope.Options`.
        overwrite: Replace runs that are already there.
        **keywords: Single options, see `precscope.Options`; they win over `options`.

    Raises:
        OptionsError: An option has an unknown name or a wrong value.

    At the beginning of the training SessionError is raised where the model is being profiled already, and
    RunDirectoryError where the run directory cannot be created.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        options: Options | Mapping[str, Any] | str | Path | None = None,
        overwrite: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__()
        self._run_dir = run_dir
        self._options = resolve_options(options, **keywords)
        self._overwrite = overwrite
        self._fits = 0
        # Keras does not call a callback when a training fails: then the session closes when this object goes.
        self._close: weakref.finalize[..., Any] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin to watch the model."""
        if self._close is not None:
            self._close()
        directory = self._directory()
        session = profile(self.model, directory, options=self._options, overwrite=self._overwrite)
        session.__enter__()
        _made.add(Path(session.path).absolute())
        self._fits += 1
        self._close = weakref.finalize(self, _close_cut_off, session)
        session.give_way = self._close
        self.model.make_train_function()  # Keras made its own before it called us

    def _directory(self) -> str | os.PathLike[str] | Path:
        """Return where the next run goes: a program that has trained for hours is not stopped by a name.

        That of the first fit is as the user gave it, and refused where an earlier program left something there.
        """
        first = Path(self._run_dir).expanduser().absolute()
        if self._fits == 0 and first not in _made:
            return self._run_dir
        numbered = (Path(f"{first}-{number}") for number in itertools.count(2))
        free = (path for path in numbered if path not in _made and (self._overwrite or not path.exists()))
        return next(free)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the model as it was."""
        if self._close is not None and (ended := self._close.detach()) is not None:
            session: Session = ended[2][0]
            session.__exit__(None, None, None)
        self._close = None


def _close_cut_off(session: Session) -> None:
    error = KeyboardInterrupt("the training ended without telling its callbacks: it failed or was interrupted")
    session.__exit__(type(error), error, None)
