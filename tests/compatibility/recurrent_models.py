"""Configurations: recurrent networks, masking, and layers that are applied along time."""

from __future__ import annotations

from typing import Any

import keras

from tests.compatibility.configuration import (
    BATCH,
    POLICIES,
    STEPS,
    Training,
    compiled,
    configuration,
    fit,
    integers,
    noise,
)

GROUP = "Recurrent networks and time"
#: Why a cell is not seen: it is called in a loop, or, on a GPU, cuDNN computes the layer and it is not called.
LOOP = "inside a loop only the forward pass can be recorded|it was not called"
layers, ops = keras.layers, keras.ops


def over_time(*stack: Any, outputs: tuple[int, ...] = (1,), loss: Any = "mse", **compile_arguments: Any) -> Training:
    """Return a training of the layers on sequences of 5 vectors of 3."""
    model = keras.Sequential([keras.Input((5, 3)), *stack])
    return fit(
        compiled(model, loss, "sgd", **compile_arguments), noise(BATCH * STEPS, 5, 3), noise(BATCH * STEPS, *outputs)
    )


@configuration("LSTM", GROUP, policies=POLICIES, unseen={"lstm/cell": LOOP})
def lstm() -> Training:
    return over_time(layers.LSTM(4, name="lstm"), layers.Dense(1))


@configuration("LSTM under XLA", GROUP, unseen={"lstm/cell": LOOP})
def lstm_xla() -> Training:
    return over_time(layers.LSTM(4, name="lstm"), layers.Dense(1), jit_compile=True)


@configuration("LSTM unrolled", GROUP)
def lstm_unrolled() -> Training:
    return over_time(layers.LSTM(4, unroll=True), layers.Dense(1))


@configuration("LSTM without cuDNN (recurrent dropout)", GROUP, unseen={"lstm/cell": LOOP})
def lstm_dropout() -> Training:
    return over_time(layers.LSTM(4, name="lstm", dropout=0.1, recurrent_dropout=0.1), layers.Dense(1))


@configuration("LSTM with use_cudnn=False", GROUP, unseen={"lstm/cell": LOOP})
def lstm_plain() -> Training:
    return over_time(layers.LSTM(4, use_cudnn=False, name="lstm"), layers.Dense(1))


@configuration("LSTM, return_sequences and return_state, stacked", GROUP, unseen={r"(first|second)/cell": LOOP})
def lstm_states() -> Training:
    inputs = keras.Input((5, 3))
    sequence, hidden, carry = layers.LSTM(4, return_sequences=True, return_state=True, name="first")(inputs)
    x = layers.LSTM(4, name="second")(sequence, initial_state=[hidden, carry])
    model = keras.Model(inputs, layers.Dense(1)(x))
    return fit(compiled(model), noise(BATCH * STEPS, 5, 3), noise(BATCH * STEPS, 1))


@configuration("GRU", GROUP, policies=POLICIES, unseen={"gru/cell": LOOP})
def gru() -> Training:
    return over_time(layers.GRU(4, name="gru", return_sequences=True), layers.Dense(1), outputs=(5, 1))


@configuration("GRU without reset_after, backwards", GROUP, unseen={"gru/cell": LOOP})
def gru_backwards() -> Training:
    return over_time(layers.GRU(4, reset_after=False, go_backwards=True, name="gru"), layers.Dense(1))


@configuration("SimpleRNN", GROUP, unseen={"rnn/cell": LOOP})
def simple_rnn() -> Training:
    return over_time(layers.SimpleRNN(4, name="rnn"), layers.Dense(1))


@configuration("bidirectional LSTM", GROUP, unseen={r"both/\w+/cell": LOOP})
def bidirectional() -> Training:
    return over_time(layers.Bidirectional(layers.LSTM(3), name="both"), layers.Dense(1))


@configuration("bidirectional GRU, its halves added up", GROUP, unseen={r"both/\w+/cell": LOOP})
def bidirectional_sum() -> Training:
    both = layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="sum", name="both")
    return over_time(both, layers.Dense(1), outputs=(5, 1))


@configuration("stateful LSTM", GROUP, policies=("float32", "mixed_float16"), unseen={"lstm/cell": LOOP})
def stateful() -> Training:
    model = keras.Sequential(
        [keras.Input(batch_shape=(BATCH, 5, 3)), layers.LSTM(4, stateful=True, name="lstm"), layers.Dense(1)]
    )
    return fit(compiled(model), noise(BATCH * STEPS, 5, 3), noise(BATCH * STEPS, 1))


@configuration(
    "stateful GRU, states reset between epochs, in a loop over train_on_batch", GROUP, unseen={"gru/cell": LOOP}
)
def stateful_loop() -> Training:
    model = keras.Sequential(
        [keras.Input(batch_shape=(BATCH, 5, 3)), layers.GRU(4, stateful=True, name="gru"), layers.Dense(1)]
    )
    compiled(model)
    x, y = noise(BATCH * STEPS, 5, 3), noise(BATCH * STEPS, 1)

    def run(session: Any) -> list[float]:
        losses = []
        for _ in range(2):
            for start in range(0, len(x), BATCH):
                losses.append(float(model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])))
            model.layers[0].reset_states()
        return losses

    return Training(model, run)


@configuration(
    "Masking before an LSTM", GROUP, quick=True, unseen={"lstm/cell": LOOP, "masking": "no gradient arrives"}
)
def masking() -> Training:
    x = noise(BATCH * STEPS, 5, 3)
    x[::2, 3:] = 0
    model = keras.Sequential([keras.Input((5, 3)), layers.Masking(), layers.LSTM(4, name="lstm"), layers.Dense(1)])
    return fit(compiled(model), x, noise(BATCH * STEPS, 1))


@configuration("Embedding with mask_zero, GRU and TimeDistributed, loss by mask", GROUP, unseen={"gru/cell": LOOP})
def mask_zero() -> Training:
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 4, mask_zero=True)(inputs)
    x = layers.GRU(4, return_sequences=True, name="gru")(x)
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(3, dtype="float32"))(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return fit(compiled(model, loss), integers(11, BATCH * STEPS, 5), integers(3, BATCH * STEPS, 5))


class MinimalCell(keras.layers.Layer):
    """An RNN cell of one's own."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = self.state_size = units
        self.inner = layers.Dense(units, "tanh")

    def build(self, shape: Any) -> None:
        self.inner.build((shape[0], shape[-1] + self.units))

    def call(self, x: Any, states: Any) -> Any:
        output = self.inner(ops.concatenate([x, states[0]], -1))
        return output, [output]


@configuration("a cell of one's own in RNN", GROUP, quick=True, unseen={"rnn/cell(/inner)?": LOOP})
def own_cell() -> Training:
    return over_time(layers.RNN(MinimalCell(4), name="rnn"), layers.Dense(1))


@configuration("stacked cells", GROUP, unseen={"rnn/cell.*": LOOP})
def stacked_cells() -> Training:
    cells = [layers.LSTMCell(3), layers.GRUCell(4)]
    return over_time(layers.RNN(layers.StackedRNNCells(cells), name="rnn"), layers.Dense(1))


@configuration("ConvLSTM1D", GROUP, unseen={"rnn/cell": LOOP})
def conv_lstm_1d() -> Training:
    model = keras.Sequential(
        [keras.Input((3, 6, 2)), layers.ConvLSTM1D(2, 3, name="rnn"), layers.Flatten(), layers.Dense(1)]
    )
    return fit(compiled(model), noise(BATCH * STEPS, 3, 6, 2), noise(BATCH * STEPS, 1))


@configuration("ConvLSTM2D, bidirectional, return_sequences", GROUP, unseen={r"both/\w+/cell": LOOP})
def conv_lstm_2d() -> Training:
    both = layers.Bidirectional(layers.ConvLSTM2D(2, 3, return_sequences=True, padding="same"), name="both")
    model = keras.Sequential([keras.Input((3, 6, 6, 2)), both, layers.GlobalAveragePooling3D(), layers.Dense(1)])
    return fit(compiled(model), noise(BATCH * STEPS, 3, 6, 6, 2), noise(BATCH * STEPS, 1))


@configuration("TimeDistributed convolution", GROUP)
def time_distributed() -> Training:
    stack = [layers.TimeDistributed(layers.Conv2D(2, 3)), layers.TimeDistributed(layers.GlobalMaxPooling2D())]
    model = keras.Sequential([keras.Input((3, 6, 6, 2)), *stack, layers.Flatten(), layers.Dense(1)])
    return fit(compiled(model), noise(BATCH * STEPS, 3, 6, 6, 2), noise(BATCH * STEPS, 1))


class Decoder(keras.Model):
    """A cell called step by step in Python, its own output fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = layers.LSTMCell(4)
        self.head = layers.Dense(3)

    def call(self, x: Any) -> Any:
        states = [ops.zeros((BATCH, 4), self.compute_dtype)] * 2
        outputs = []
        token = x
        for _ in range(3):
            hidden, states = self.cell(token, states)
            token = self.head(hidden)
            outputs.append(token)
        return ops.stack(outputs, 1)


@configuration("decoder that feeds its output back, cell by cell", GROUP)
def decoder() -> Training:
    return fit(compiled(Decoder()), noise(BATCH * STEPS, 3), noise(BATCH * STEPS, 3, 3))
