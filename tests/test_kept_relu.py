"""In a probed step ReLU's gradient reads what the ReLU put out, so that its input need not live until then."""

from __future__ import annotations

import re
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from precscope.probes.kept_relu import kept_relu
from precscope.probes.reading import TensorKey
from precscope.probes.recorder import Recorder

ACTIVATIONS = {"relu": keras.activations.relu, "relu6": keras.activations.relu6}
W1, W2 = (tf.random.stateless_normal([64, 64], [n, 1]) for n in (1, 2))


def gradient_step(activation, recorder, how=None):
    """Return a step, compiled by XLA, of two products with a recorded tensor and a ReLU in between."""
    how = kept_relu(recorder) if how is None else how

    @tf.custom_gradient
    def recorded(x):
        return recorder.record(TensorKey("layer", "activation", "0"), x), lambda gradient: gradient

    @tf.function(jit_compile=True, autograph=False)
    def step(x):
        recorder.begin()
        try:
            with tf.GradientTape() as tape, how:
                tape.watch(x)
                loss = tf.reduce_sum(tf.sin(activation(recorded(x @ W1)) @ W2))
            gradient = tape.gradient(loss, x)
            recorder.end()
        finally:
            recorder.cancel()
        return loss, gradient

    return step


def read_by_relu_gradient(step, x):
    """Return the names of the instructions that a ReLU's gradient compares, in the program that XLA is given."""
    text = step.experimental_get_compiler_ir(x)(stage="hlo")
    compared = [line for line in text.splitlines() if " compare(" in line and "Grad" in line]
    return {name for line in compared for name in re.findall(r"f32\S* %(\w+)", line.split(" compare(")[1])}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gradient_reads_the_output_behind_a_barrier_that_xla_fuses_nothing_across(name):
    x = tf.random.stateless_normal([32, 64], [3, 1])
    kept = read_by_relu_gradient(gradient_step(ACTIVATIONS[name], Recorder(in_xla=True)), x)
    plain = read_by_relu_gradient(gradient_step(ACTIVATIONS[name], Recorder(in_xla=True), nullcontext()), x)
    assert "XlaOptimizationBarrier" in kept
    assert kept.isdisjoint({"Relu", "Relu6"})
    assert plain & {"Relu", "Relu6"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_plain_relu(name):
    x = tf.random.stateless_normal([32, 64], [3, 1]) * 3
    kept = gradient_step(ACTIVATIONS[name], Recorder(in_xla=True))(x)
    plain = gradient_step(ACTIVATIONS[name], Recorder(in_xla=True), nullcontext())(x)
    for ours, theirs in zip(kept, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
