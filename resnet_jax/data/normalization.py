"""What is subtracted from the pixels and what they are divided by."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.sources import ArraySource
from resnet_jax.errors import UserError

Normalization = dict[str, jax.Array]


def normalize(images, normalization: Normalization) -> jax.Array:
    """(pixels / 255 - mean) / std in float32.

    Args:
      images: uint8 [..., H, W, C].
      normalization: 'mean' and 'std', float32, [C] or [H, W, C], in units of the full range.
    """
    return (images.astype(jnp.float32) / 255 - normalization['mean']) / normalization['std']


def measure(source: ArraySource, kind: str) -> Normalization:
    """The normalisation that a training split calls for, in float32, computed in float64.

    Args:
      source: the training split.
      kind: 'per_pixel_mean', the paper's: the mean image [H, W, C] is subtracted and the scale is
        left at the full range. 'per_channel': mean and standard deviation [C]. 'none'.

    Raises:
      UserError: there is no such kind.
    """
    channels = source.images.shape[-1]
    images = source.images.astype(np.float64) / 255
    if kind == 'per_pixel_mean':
        mean, std = images.mean(0), np.ones(channels)
    elif kind == 'per_channel':
        mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    elif kind == 'none':
        mean, std = np.zeros(channels), np.ones(channels)
    else:
        raise UserError(f'data.normalization must be per_pixel_mean, per_channel or none, '
                         f'got {kind!r}.')
    return {'mean': mean.astype(np.float32), 'std': std.astype(np.float32)}
