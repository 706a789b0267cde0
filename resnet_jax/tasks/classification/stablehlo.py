"""Serialises a classifier for other programs, with its weights and its input normalisation."""

import functools

import jax
import numpy as np
from jax import export

from resnet_jax.data.sizes import pair, text
from resnet_jax.errors import UserError
from resnet_jax.models import ConfigError
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import outputs


def stablehlo(network: Classifier, size: int | tuple[int, int]) -> bytearray:
    """The network as a serialised `jax.export.Exported` with a symbolic batch size.

    Args:
      network: see `Classifier`.
      size: of its images: the side of a square, or (height, width).

    Returns:
      What `jax.export.deserialize` takes. Its function is uint8 [b, H, W, C] ->
      float32 [b, classes].

    Raises:
      UserError: the network does not take images of this size.
    """
    weights = dict(network.variables), dict(network.normalization)
    height, width = pair(size)
    shape = export.symbolic_shape(
        f'b, {height}, {width}, {network.config.data.channels}')
    function = jax.jit(functools.partial(outputs, network.model, weights))
    try:
        exported = export.export(function, platforms=('cpu', 'cuda', 'tpu'))(
            jax.ShapeDtypeStruct(shape, np.uint8))
    except ConfigError as error:
        raise UserError(f'--image_size={text(size)}: {error}') from error
    return exported.serialize()
