"""Serialises a classifier for other programs, with its weights and its input normalisation."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from resnet_jax.data.sizes import eval_size, pair, text
from resnet_jax.errors import UserError
from resnet_jax.models import ConfigError
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import outputs


def stablehlo(network: Classifier, flags: Mapping[str, Any]) -> bytearray:
    """The network as a serialised `jax.export.Exported` with a symbolic batch size.

    Args:
      network: see `Classifier`.
      flags: 'image_size', the side of its images; None: as in evaluation.

    Returns:
      What `jax.export.deserialize` takes. Its function is uint8 [b, H, W, C] ->
      float32 [b, classes].

    Raises:
      UserError: the network does not take images of this size.
    """
    weights = dict(network.variables), dict(network.normalization)
    height, width = size = pair(flags['image_size'] or eval_size(network.config.data))
    shape = export.symbolic_shape(
        f'b, {height}, {width}, {network.config.data.channels}')
    function = jax.jit(functools.partial(outputs, network.model, weights))
    try:
        exported = export.export(function, platforms=('cpu', 'cuda', 'tpu'))(
            jax.ShapeDtypeStruct(shape, np.uint8))
    except ConfigError as error:
        raise UserError(f'--image_size={text(size)}: {error}') from error
    return exported.serialize()
