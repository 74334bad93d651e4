"""Configurations: models of keras-hub from configurations without presets; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import keras

from tests.compatibility.configuration import BATCH, STEPS, Training, compiled, configuration, fit, integers, noise

GROUP = "keras-hub"
MANY, LENGTH, WORDS = BATCH * STEPS, 6, 19
NEEDS = {"needs": "keras_hub"}
layers = keras.layers


def cross_entropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def tokens() -> dict[str, Any]:
    return {"token_ids": integers(WORDS, MANY, LENGTH), "padding_mask": integers(2, MANY, LENGTH, low=1)}


def with_head(backbone: Any, output: Any, units: int = WORDS) -> Any:
    """Return a model of the backbone and a float32 head on one of its outputs."""
    return keras.Model(backbone.input, layers.Dense(units, dtype="float32", name="head")(output))


@configuration(
    "BERT",
    GROUP,
    **NEEDS,
    policies=("mixed_float16", "mixed_bfloat16"),
    weights_unseen="one output is not used",
    unseen={".*pooled.*": "no gradient arrives"},
)
def bert() -> Training:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=WORDS, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=LENGTH
    )
    model = with_head(backbone, backbone.output["sequence_output"])
    data = tokens() | {"segment_ids": integers(2, MANY, LENGTH)}
    return fit(compiled(model, cross_entropy(), keras.optimizers.SGD(0.1)), data, integers(WORDS, MANY, LENGTH))


@configuration("GPT-2", GROUP, **NEEDS)
def gpt2() -> Training:
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=WORDS, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=LENGTH
    )
    model = with_head(backbone, backbone.output)
    return fit(compiled(model, cross_entropy(), keras.optimizers.SGD(0.1)), tokens(), integers(WORDS, MANY, LENGTH))


@configuration("GPT-2 as a CausalLM with its own loss, LoRA on", GROUP, **NEEDS)
def gpt2_lora() -> Training:
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=WORDS, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=LENGTH
    )
    backbone.enable_lora(2)
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    compiled(model, cross_entropy(), keras.optimizers.SGD(0.1))
    return fit(model, tokens(), integers(WORDS, MANY, LENGTH))


@configuration(
    "Gemma",
    GROUP,
    **NEEDS,
    policies=("mixed_float16", "mixed_bfloat16"),
    unseen={".*/dropout_layer": "it was not called"},
)
def gemma() -> Training:
    import keras_hub

    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=WORDS,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
    )
    model = keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)
    compiled(model, cross_entropy(), keras.optimizers.SGD(0.1))
    return fit(model, tokens(), integers(WORDS, MANY, LENGTH))


@configuration("the VAE of Stable Diffusion 3", GROUP, **NEEDS)
def vae() -> Training:
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    backbone = VAEBackbone(
        encoder_num_filters=[32, 32],
        encoder_num_blocks=[1, 1],
        decoder_num_filters=[32, 32],
        decoder_num_blocks=[1, 1],
        sample_channels=8,
        image_shape=(8, 8, 3),
    )
    return fit(compiled(backbone), noise(MANY, 8, 8, 3), noise(MANY, 8, 8, 3))


@configuration("the diffusion transformer of Stable Diffusion 3 (MMDiT)", GROUP, **NEEDS)
def diffusion() -> Training:
    from keras_hub.src.models.stable_diffusion_3.mmdit import MMDiT

    model = MMDiT(
        patch_size=2,
        hidden_dim=8,
        num_layers=2,
        num_heads=2,
        position_size=4,
        latent_shape=(8, 8, 4),
        context_shape=(LENGTH, 6),
        pooled_projection_shape=(6,),
    )
    data = {
        "latent": noise(MANY, 8, 8, 4),
        "context": noise(MANY, LENGTH, 6),
        "pooled_projection": noise(MANY, 6),
        "timestep": noise(MANY, 1),
    }
    return fit(compiled(model), data, noise(MANY, 8, 8, 4))


@configuration("ResNet", GROUP, **NEEDS)
def resnet() -> Training:
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    model = with_head(backbone, layers.GlobalAveragePooling2D()(backbone.output), 3)
    return fit(compiled(model, cross_entropy()), noise(MANY, 16, 16, 3), integers(3, MANY))
