"""Configurations: what people give to `fit` and `compile`, and what they do between two calls."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tests.compatibility.configuration import (
    BATCH,
    POLICIES,
    STEPS,
    Losses,
    Training,
    compiled,
    configuration,
    fit,
    integers,
    noise,
)

GROUP = "Options of fit and compile"
layers = keras.layers
MANY = BATCH * STEPS


def classifier(optimizer: Any = "sgd", **compile_arguments: Any) -> Any:
    """Return a compiled classifier with a normalization in it."""
    stack = [layers.Dense(6, "tanh", name="hidden"), layers.LayerNormalization(name="norm")]
    model = keras.Sequential([keras.Input((4,)), *stack, layers.Dense(3, dtype="float32", name="head")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compiled(model, loss, optimizer, **compile_arguments)


def examples(count: int = MANY) -> tuple[Any, Any]:
    return noise(count, 4), integers(3, count)


def several_fits(model: Any, *between: Any) -> Training:
    """Return a training of several `fit` calls; `between` is called with the model after each but the last."""

    def run(session: Any) -> list[float]:
        losses = Losses()
        x, y = examples()
        for number, action in enumerate([*between, lambda model: None]):
            arguments: dict[str, Any] = {"initial_epoch": number, "epochs": number + 1}
            model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[losses], **arguments)
            action(model)
        return losses.values

    return Training(model, run)


for name, arguments in {
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.01},
    "use_ema": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
    "weight_decay": {"weight_decay": 0.01},
    "a learning rate schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5)},
    "loss_scale_factor": {"loss_scale_factor": 128.0},
}.items():

    @configuration(name, GROUP, policies=("mixed_float16", "float32") if "ema" in name else ("mixed_float16",))
    def optimizer_option(arguments: dict[str, Any] = arguments) -> Training:
        return fit(classifier(keras.optimizers.SGD(**({"learning_rate": 0.05} | arguments))), *examples())


@configuration("class_weight", GROUP)
def class_weight() -> Training:
    return fit(classifier(), *examples(), class_weight={0: 1.0, 1: 3.0, 2: 0.5})


@configuration("validation, early stopping, learning rate reduced on a plateau", GROUP)
def early_stopping() -> Training:
    early = keras.callbacks.EarlyStopping(patience=1, monitor="loss", min_delta=100.0, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=0, min_delta=100.0)
    return fit(classifier(), *examples(), epochs=5, validation_split=0.25, callbacks=[early, plateau])


@configuration("fit resumed with initial_epoch, several times", GROUP, policies=POLICIES, quick=True)
def resumed() -> Training:
    return several_fits(classifier("adam"), lambda model: None, lambda model: model.evaluate(*examples(), verbose=0))


@configuration("compiled anew between two fits", GROUP)
def compiled_anew() -> Training:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return several_fits(classifier(), lambda model: compiled(model, loss, "adam"))


@configuration("layers frozen between two fits, compiled anew", GROUP, unseen={"hidden|norm": "no gradient arrives"})
def frozen_between() -> Training:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def freeze(model: Any) -> None:
        model.get_layer("hidden").trainable = False
        compiled(model, loss)

    return several_fits(classifier(), freeze)


def in_folder(action: Any) -> Any:
    """Return `action` with a folder that is gone afterwards as its second argument."""

    def within(model: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            action(model, Path(folder))

    return within


@configuration("saved and loaded in the middle", GROUP, quick=True)
def saved_in_the_middle() -> Training:
    def save(model: Any, folder: Path) -> None:
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        loaded = keras.models.load_model(folder / "model.keras")
        loaded.fit(*examples(8), batch_size=BATCH, verbose=0)  # another model, not watched
        model.load_weights(folder / "model.weights.h5")

    return several_fits(classifier("adam"), in_folder(save))


@configuration("exported as a SavedModel in the middle", GROUP)
def exported() -> Training:
    return several_fits(classifier(), in_folder(lambda model, folder: model.export(folder / "model", verbose=False)))


@configuration("cloned in the middle", GROUP)
def cloned() -> Training:
    return several_fits(classifier(), lambda model: keras.models.clone_model(model))


@configuration("SwapEMAWeights: weights swapped for their average at each validation", GROUP)
def swapped_weights() -> Training:
    model = classifier(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
    x, y = examples()
    callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    return fit(model, x, y, epochs=3, validation_data=examples(BATCH), callbacks=callbacks)


@configuration("ModelCheckpoint every epoch", GROUP)
def checkpointed() -> Training:
    folder = tempfile.mkdtemp()

    class Clean(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            shutil.rmtree(folder, ignore_errors=True)

    checkpoint = keras.callbacks.ModelCheckpoint(f"{folder}/best.keras", monitor="loss", save_best_only=True)
    return fit(classifier(), *examples(), epochs=2, callbacks=[checkpoint, Clean()])


@configuration("BackupAndRestore after an interruption", GROUP)
def backup() -> Training:
    model = classifier("adam")

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise InterruptedError("on purpose")

    def run(session: Any) -> list[float]:
        losses, (x, y) = Losses(), examples()
        arguments: dict[str, Any] = {"batch_size": BATCH, "epochs": 3, "verbose": 0, "shuffle": False}
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(InterruptedError):
                model.fit(x, y, callbacks=[losses, keras.callbacks.BackupAndRestore(folder), Interrupt()], **arguments)
            model.fit(x, y, callbacks=[losses, keras.callbacks.BackupAndRestore(folder)], **arguments)
        return losses.values

    return Training(model, run)


@configuration("an endless dataset with steps_per_epoch", GROUP)
def endless() -> Training:
    data = tf.data.Dataset.from_tensor_slices(examples()).batch(BATCH).repeat()
    return fit(classifier(), data, steps_per_epoch=3, epochs=2)


@configuration("a PyDataset with workers", GROUP)
def py_dataset() -> Training:
    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return STEPS

        def __getitem__(self, index: int) -> Any:
            x, y = examples()
            return x[index * BATCH : (index + 1) * BATCH], y[index * BATCH : (index + 1) * BATCH]

    model = classifier()

    def run(session: Any) -> list[float]:
        losses = Losses()
        model.fit(Batches(workers=2), verbose=0, shuffle=False, callbacks=[losses])
        return losses.values

    return Training(model, run)


@configuration("shuffled data and a callback that changes the learning rate", GROUP)
def shuffled() -> Training:
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    return fit(
        classifier(), *examples(), shuffle=True, epochs=2, callbacks=[schedule, keras.callbacks.TerminateOnNaN()]
    )
