"""Input normalisation: the mean and standard deviation of the training split, or constants."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.types import Normalization, Source
from resnet_jax.errors import UserError

KINDS = ('per_channel', 'per_pixel_mean', 'imagenet', 'none')
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLORS = ('red', 'green', 'blue')


def normalize(images, normalization: Normalization) -> jax.Array:
    """(pixels / 255 - mean) / std in float32.

    Args:
      images: uint8 [..., H, W, C].
      normalization: 'mean' and 'std', float32, [C] or [H, W, C], in units of the full range.
    """
    fractions = exact(images.astype(jnp.float32) / 255)
    return (fractions - normalization['mean']) / normalization['std']


def exact(x: jax.Array) -> jax.Array:
    """The same finite numbers, each rounded to float32 before anything is added.

    Compilers fuse a product with the next sum into one rounding, or not, depending on the shapes,
    so that the last bit would depend on the number of devices. XLA removes a barrier and a rounding
    to the same precision on CPU before that happens; it keeps a minimum.
    """
    return jnp.minimum(x, jnp.finfo(jnp.float32).max)


def measure(source: Source, kind: str, transform: Any = None, cache_folder: str = '', *,
            skip_unreadable: bool = False) -> Normalization:
    """The normalisation that a training split calls for, in float32, from exact integer sums.

    All processes of a job call it, and get the same.

    Args:
      source: the training split.
      kind: 'per_pixel_mean', the paper's: the mean image [H, W, C] is subtracted and the scale is
        left at the full range. 'per_channel': mean and standard deviation [C]. 'imagenet': the
        constants that most published weights go with. 'none'.
      transform: an `EvalTransform`, which makes the source's images one size; None: they are
        already.
      cache_folder: where the statistics of images that must be decoded are kept; '': nowhere.
      skip_unreadable: leave out images that cannot be decoded, instead of an error.

    Raises:
      UserError: the kind does not suit the images, or one cannot be decoded.
    """
    # With what reads images, which normalising does not need.
    from resnet_jax.data import statistics, transforms

    channels = getattr(transform, 'channels', None) or transforms.channels(source[0])
    if kind in ('imagenet', 'none'):
        mean, std = np.zeros(channels), np.ones(channels)
        if kind == 'imagenet':
            mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    else:
        mean_image, mean, std = statistics.measure(source, transform, cache_folder,
                                                   skip_unreadable=skip_unreadable)
        if kind == 'per_pixel_mean':
            mean, std = mean_image, np.ones(len(std))
        else:
            _check_deviation(mean, std)
    return {'mean': mean.astype(np.float32), 'std': std.astype(np.float32)}


def identity(kind: str, image_shape: tuple[int, int, int]) -> Normalization:
    """One that changes nothing, in the shapes that `measure` gives for images [H, W, C]."""
    channels = image_shape[-1:]
    mean_shape = image_shape if kind == 'per_pixel_mean' else channels
    return {'mean': np.zeros(mean_shape, np.float32), 'std': np.ones(channels, np.float32)}


def _check_deviation(mean: np.ndarray, std: np.ndarray) -> None:
    """Raises UserError where a channel is constant, [C] of each in units of the full range."""
    names = COLORS if len(std) == len(COLORS) else ('only',)
    for name, center, deviation in zip(names, mean, std, strict=True):
        if deviation == 0:
            others = [kind for kind in KINDS[1:] if kind != 'imagenet' or len(std) == 3]
            raise UserError(
                f'the {name} channel of the training images is constant, {center * 255:.0f} of 255 '
                'in every pixel, and data.normalization=per_channel would divide by its standard '
                f'deviation, 0: set data.normalization to {", ".join(others[:-1])} or '
                f'{others[-1]}.')
