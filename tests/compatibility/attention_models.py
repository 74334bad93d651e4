"""Configurations: transformers written with Keras' attention layers, embeddings, low-rank adapters."""

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

GROUP = "Attention and embeddings"
layers, ops = keras.layers, keras.ops
LENGTH, WIDTH, WORDS = 6, 8, 17
#: Without dropout and scores Keras computes attention in one operation: the layers of its softmax are not called.
FUSED = {".*/_(softmax|dropout_layer)": "it was not called"}


def block(x: Any, number: int = 0, **call: Any) -> Any:
    """Return one pre-norm transformer block."""
    y = layers.LayerNormalization(name=f"norm_{number}")(x)
    x = x + layers.MultiHeadAttention(2, WIDTH // 2, dropout=0.1, name=f"attention_{number}")(y, y, **call)
    y = layers.Dense(2 * WIDTH, "gelu", name=f"wide_{number}")(layers.LayerNormalization(name=f"norm2_{number}")(x))
    return x + layers.Dense(WIDTH, name=f"narrow_{number}")(y)


def language_model(blocks: int = 1, **call: Any) -> Any:
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, name="tokens")(inputs)
    x = x + layers.Embedding(LENGTH, WIDTH, name="places")(ops.arange(LENGTH))
    for number in range(blocks):
        x = block(x, number, **call)
    return keras.Model(inputs, layers.Dense(WORDS, dtype="float32", name="head")(x))


def words() -> tuple[Any, Any]:
    return integers(WORDS, BATCH * STEPS, LENGTH), integers(WORDS, BATCH * STEPS, LENGTH, seed=9)


def cross_entropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@configuration("transformer, causal", GROUP, policies=POLICIES, quick=True)
def causal_transformer() -> Training:
    return fit(compiled(language_model(use_causal_mask=True), cross_entropy(), keras.optimizers.SGD(0.1)), *words())


@configuration("transformer under XLA", GROUP)
def transformer_xla() -> Training:
    return fit(compiled(language_model(), cross_entropy(), keras.optimizers.SGD(0.1), jit_compile=True), *words())


class Encoder(keras.Model):
    """A subclassed transformer with a padding mask, whose attention returns scores, too."""

    def __init__(self, flash: bool | None) -> None:
        super().__init__()
        self.embed = layers.Embedding(WORDS, WIDTH, mask_zero=True)
        self.attend = layers.MultiHeadAttention(2, WIDTH // 2, flash_attention=flash)
        self.norm = layers.LayerNormalization()
        self.head = layers.Dense(3, dtype="float32")

    def call(self, tokens: Any, training: bool = False) -> Any:
        x = self.embed(tokens)
        x = self.norm(x + self.attend(x, x, training=training))
        return self.head(ops.mean(x, 1))


@configuration("attention, flash_attention=False", GROUP, unseen=FUSED)
def flash_off() -> Training:
    return fit(compiled(Encoder(False), cross_entropy()), words()[0], integers(3, BATCH * STEPS))


@configuration("attention, flash_attention=True", GROUP, refused="[Ff]lash attention is not supported")
def flash_on() -> Training:
    return fit(compiled(Encoder(True), cross_entropy()), words()[0], integers(3, BATCH * STEPS))


@configuration("attention, keras.config.enable_flash_attention()", GROUP, unseen=FUSED)
def flash_enabled() -> Training:
    keras.config.enable_flash_attention()
    return fit(compiled(Encoder(None), cross_entropy()), words()[0], integers(3, BATCH * STEPS))


@configuration("attention, flash_attention left to Keras, scores returned", GROUP, unseen=FUSED)
def flash_auto() -> Training:
    inputs = keras.Input((LENGTH, WIDTH))
    x, scores = layers.MultiHeadAttention(2, 4, name="attend")(inputs, inputs, return_attention_scores=True)
    pooled = layers.GlobalAveragePooling1D()(x) + ops.mean(scores, (1, 2, 3))[:, None]
    model = keras.Model(inputs, layers.Dense(1)(pooled))
    return fit(compiled(model), noise(BATCH * STEPS, LENGTH, WIDTH), noise(BATCH * STEPS, 1))


@configuration("grouped-query attention and RMSNormalization", GROUP, unseen=FUSED)
def grouped_query() -> Training:
    inputs = keras.Input((LENGTH, WIDTH))
    x = layers.RMSNormalization()(inputs)
    x = layers.GroupQueryAttention(4, 4, 2, name="attend")(x, x)
    return fit(
        compiled(keras.Model(inputs, layers.Dense(1)(x))),
        noise(BATCH * STEPS, LENGTH, WIDTH),
        noise(BATCH * STEPS, LENGTH, 1),
    )


@configuration("Attention and AdditiveAttention between two sequences", GROUP)
def dot_attention() -> Training:
    query, value = keras.Input((LENGTH, 4)), keras.Input((3, 4))
    x = layers.Attention(use_scale=True)([query, value]) + layers.AdditiveAttention()([query, value])
    model = keras.Model([query, value], layers.Dense(1)(x))
    data = [noise(BATCH * STEPS, LENGTH, 4), noise(BATCH * STEPS, 3, 4)]
    return fit(compiled(model), data, noise(BATCH * STEPS, LENGTH, 1))


@configuration("encoder and decoder with cross-attention, causal mask and padding masks", GROUP)
def encoder_decoder() -> Training:
    source, target = keras.Input((LENGTH,), dtype="int32"), keras.Input((4,), dtype="int32")
    memory = block(layers.Embedding(WORDS, WIDTH, mask_zero=True)(source))
    x = layers.Embedding(WORDS, WIDTH, mask_zero=True)(target)
    x = block(x, 1, use_causal_mask=True)
    x = x + layers.MultiHeadAttention(2, WIDTH // 2, dropout=0.1, name="across")(x, memory)
    model = keras.Model([source, target], layers.Dense(WORDS, dtype="float32", name="head")(x))
    data = [integers(WORDS, BATCH * STEPS, LENGTH), integers(WORDS, BATCH * STEPS, 4)]
    return fit(compiled(model, cross_entropy(), keras.optimizers.SGD(0.1)), data, integers(WORDS, BATCH * STEPS, 4))


@configuration("patches of an image to a transformer (ViT)", GROUP)
def vision_transformer() -> Training:
    inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((4, WIDTH))(layers.Conv2D(WIDTH, 4, 4, name="patches")(inputs))
    x = layers.LayerNormalization(name="last")(block(x))
    model = keras.Model(inputs, layers.Dense(3, dtype="float32")(layers.GlobalAveragePooling1D()(x)))
    return fit(compiled(model, cross_entropy()), noise(BATCH * STEPS, 8, 8, 3), integers(3, BATCH * STEPS))


@configuration("Embedding with sparse gradients", GROUP, policies=POLICIES, quick=True)
def sparse_embedding() -> Training:
    model = keras.Sequential(
        [keras.Input((LENGTH,), dtype="int32"), layers.Embedding(50, 4), layers.Flatten(), layers.Dense(1)]
    )
    return fit(compiled(model, optimizer="adam"), integers(50, BATCH * STEPS, LENGTH), noise(BATCH * STEPS, 1))


@configuration("sparse gradients, accumulated over two steps", GROUP)
def sparse_accumulated() -> Training:
    model = keras.Sequential(
        [keras.Input((LENGTH,), dtype="int32"), layers.Embedding(50, 4), layers.Flatten(), layers.Dense(1)]
    )
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    return fit(compiled(model, optimizer=optimizer), integers(50, BATCH * STEPS, LENGTH), noise(BATCH * STEPS, 1))


@configuration("tied embedding (ReversibleEmbedding)", GROUP)
def tied_embedding() -> Training:
    inputs = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(WORDS, WIDTH, name="words")
    x = layers.Dense(WIDTH, "tanh")(embedding(inputs))
    model = keras.Model(inputs, embedding(x, reverse=True))
    return fit(compiled(model, cross_entropy()), *words())


class TiedWeights(keras.Model):
    """The head multiplies by the embedding's matrix: a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(WORDS, WIDTH)
        self.inner = layers.Dense(WIDTH, "tanh")

    def call(self, tokens: Any) -> Any:
        x = self.inner(self.embedding(tokens))
        return ops.matmul(x, ops.transpose(ops.cast(self.embedding.embeddings, x.dtype)))


@configuration("a weight that two layers share, dense and sparse gradient", GROUP)
def tied_weights() -> Training:
    return fit(compiled(TiedWeights(), cross_entropy(), "adam"), *words())


@configuration("LoRA in Dense and Embedding", GROUP, policies=POLICIES, quick=True)
def lora() -> Training:
    model = language_model()
    for layer in model.layers:
        if isinstance(layer, (layers.Dense, layers.Embedding)):
            layer.enable_lora(2)
    return fit(compiled(model, cross_entropy(), keras.optimizers.SGD(0.1)), *words())


@configuration("LoRA in attention (EinsumDense)", GROUP)
def lora_attention() -> Training:
    model = language_model()
    attention = model.get_layer("attention_0")
    for layer in (attention.query_dense, attention.value_dense):
        layer.enable_lora(2)
    return fit(compiled(model, cross_entropy(), keras.optimizers.SGD(0.1)), *words())


@configuration("LoRA on weights quantized to int8", GROUP, policies=("mixed_bfloat16", "float32"))
def lora_quantized() -> Training:
    model = language_model()
    for layer in model.layers:
        if isinstance(layer, (layers.Dense, layers.Embedding)):
            layer.quantize("int8")
            layer.enable_lora(2)
    return fit(compiled(model, cross_entropy(), keras.optimizers.SGD(0.1)), *words())
