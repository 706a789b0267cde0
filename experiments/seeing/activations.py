"""Reads intermediate activations of a network, and computes the effect of changing them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import normalized

SCORES = 'head'  # the stage whose channels are the classes


def on_device(network: Classifier) -> tuple[Any, Any]:
    """(variables, normalisation) of a trained network, as the functions of this package take them.
    """
    return jax.device_put((dict(network.variables), dict(network.normalization)))


def looped(model: nn.Module) -> nn.Module:
    """The same network with its stages as loops, which compile sooner; variables stay the same."""
    return model.clone(unroll=False) if hasattr(model, 'unroll') else model


def intervene(model: nn.Module, weights: tuple[Any, Any], images: jax.Array, stage: str,
              change: Callable[[jax.Array], jax.Array] = lambda features: features,
              ) -> tuple[jax.Array, jax.Array]:
    """The class scores, when the features behind a stage are replaced by others. Pure.

    Args:
      model: a network with a head.
      weights: (variables, normalisation).
      images: uint8, or float in units of the full range, [N, H, W, C].
      stage: 'stem', 'stage1', …, as `Classifier.stages`, of feature maps; or
        'head': the scores themselves.
      change: features [N, h, w, channels] -> new ones of the same shape and dtype.

    Returns:
      The scores, float32 [N, classes], and the features before the change, in the network's dtype.

    Raises:
      ValueError: the network has no such stage.
    """
    if stage not in (*model.stages, SCORES):
        raise ValueError(f'the network has no stage {stage!r}.')
    variables, normalization = weights
    return model.apply(variables, normalized(images, normalization), stage, change,
                       method=_intervene)


def _intervene(model, x, stage, change):
    x, found = x.astype(model.dtype), None
    for name in model.stages:
        x = model.run(name, x, train=False)
        if name == stage:
            found, x = x, change(x)
    scores = model.classify(x)
    return (change(scores), scores) if stage == SCORES else (scores, found)


def channel_means(model: nn.Module, weights: tuple[Any, Any], images: jax.Array,
                  stage: str) -> jax.Array:
    """The mean of every channel over all positions: float32 [N, channels]."""
    _, features = intervene(model, weights, images, stage)
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return features.mean(range(1, features.ndim - 1))
