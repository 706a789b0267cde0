"""What is subtracted from the pixels and what they are divided by."""

import pathlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from resnet_jax.cores import available_cores
from resnet_jax.data import cache
from resnet_jax.data.sources import ArraySource, Source, cache_key, digest
from resnet_jax.data.transforms import EvalTransform
from resnet_jax.errors import UserError

Normalization = dict[str, jax.Array]

KINDS = ('per_channel', 'per_pixel_mean', 'imagenet', 'none')
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 256  # images that one thread adds up at a time; 256 * 255 < 2**16
LOG_EVERY = 50_000  # images


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


def measure(source: Source, kind: str, transform: EvalTransform | None = None,
            cache_folder: str = '') -> Normalization:
    """The normalisation that a training split calls for, in float32, from exact integer sums.

    Args:
      source: the training split.
      kind: 'per_pixel_mean', the paper's: the mean image [H, W, C] is subtracted and the scale is
        left at the full range. 'per_channel': mean and standard deviation [C]. 'imagenet': the
        constants that most published weights go with. 'none'.
      transform: makes the source's images one size; none: they are already.
      cache_folder: where the statistics of images that must be decoded are kept; '': nowhere.

    Raises:
      UserError: there is no such kind, or it needs colour images and these are grey.
    """
    first = source[0].image
    channels = first.shape[-1] if isinstance(first, np.ndarray) else 3
    _check(kind, channels)
    if kind in ('imagenet', 'none'):
        mean, std = np.zeros(channels), np.ones(channels)
        if kind == 'imagenet':
            mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    else:
        mean_image, mean, std = _statistics(source, transform, cache_folder)
        if kind == 'per_pixel_mean':
            mean, std = mean_image, np.ones(len(std))
    return {'mean': mean.astype(np.float32), 'std': std.astype(np.float32)}


def identity(kind: str, image_shape: tuple[int, int, int]) -> Normalization:
    """One that changes nothing, in the shapes that `measure` gives for images [H, W, C].

    Raises:
      UserError: there is no such kind.
    """
    _check(kind, image_shape[-1])
    channels = image_shape[-1:]
    mean_shape = image_shape if kind == 'per_pixel_mean' else channels
    return {'mean': np.zeros(mean_shape, np.float32), 'std': np.ones(channels, np.float32)}


def _check(kind: str, channels: int) -> None:
    if kind not in KINDS:
        raise UserError(f'data.normalization must be one of {", ".join(KINDS)}, got {kind!r}.')
    if kind == 'imagenet' and channels != 3:
        raise UserError("data.normalization 'imagenet' is for colour images, and these "
                        f'have {channels} channel.')


def _statistics(source: Source, transform: EvalTransform | None, cache_folder: str):
    """Mean image [H, W, C], mean [C] and standard deviation [C], float64, over all images."""
    path = None
    if cache_folder and cache_key(source):
        key = digest(cache_key(source), tuple(transform or ()))
        path = pathlib.Path(cache_folder).expanduser() / f'statistics-{key}.npz'
        cached = cache.load(path)
        if cached is not None:
            return cached['mean_image'], cached['mean'], cached['std']
    total, squares = _sums(source, transform)
    mean_image = total / len(source) / 255
    mean = mean_image.mean((0, 1))
    pixels = len(source) * total.shape[0] * total.shape[1]
    std = np.sqrt(squares / pixels / 255**2 - mean**2)
    if path:
        cache.save(path, mean_image=mean_image, mean=mean, std=std)
    return mean_image, mean, std


def _sums(source: Source, transform: EvalTransform | None):
    """The sum of all images, uint64 [H, W, C], and the sum of squares, uint64 [C]."""
    def add(start: int):
        stop = min(start + CHUNK, len(source))
        if isinstance(source, ArraySource):
            images = source.images[start:stop]
        else:
            images = np.stack([transform(source[i]) for i in range(start, stop)])
        if start // LOG_EVERY != stop // LOG_EVERY:
            logging.info('Normalisation: %d of %d images', stop, len(source))
        # A chunk's sum, and one pixel's square, just fit in 16 bits.
        squares = np.square(images, dtype=np.uint16)
        return images.sum(0, dtype=np.uint16), squares.sum((0, 1, 2), dtype=np.uint64)

    with ThreadPoolExecutor(available_cores()) as pool:
        sums = pool.map(add, range(0, len(source), CHUNK))
        total, squares = (x.astype(np.uint64) for x in next(sums))
        for chunk_total, chunk_squares in sums:
            total += chunk_total
            squares += chunk_squares
    return total, squares
