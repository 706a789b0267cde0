"""Serialises a classifier for other programs, with its weights and its input normalisation."""

import functools

import jax
import numpy as np
from jax import export

from resnet_jax.data.sizes import text
from resnet_jax.errors import UserError
from resnet_jax.models import ConfigError
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import outputs


def stablehlo(network: Classifier, size: tuple[int, int]) -> bytearray:
    """The network as a serialised `jax.export.Exported` with a symbolic batch size.

    Args:
      network: see `Classifier`.
      size: (height, width) of its images.

    Returns:
      What `jax.export.deserialize` takes. Its function is uint8 [b, *size, C] ->
      float32 [b, classes].

    Raises:
      UserError: the network does not take images of this size.
    """
    weights = dict(network.variables), dict(network.normalization)
    shape = export.symbolic_shape(
        f'b, {size[0]}, {size[1]}, {network.config.data.channels}')
    function = jax.jit(functools.partial(outputs, network.model, weights))
    try:
        exported = export.export(function, platforms=('cpu', 'cuda', 'tpu'))(
            jax.ShapeDtypeStruct(shape, np.uint8))
    except ConfigError as error:
        raise UserError(f'--image_size={text(size)}: {error}') from error
    return exported.serialize()
