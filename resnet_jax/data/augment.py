"""Augmentation and normalisation on the device, inside the jitted step, for both pipelines.

Everything is a function of the batch, the step and the seed. Each image has its own random key, so
the result does not depend on how the batch is sharded over devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.normalization import Normalization, exact, normalize

Batch = dict[str, jax.Array]

# Principal components of the colours of ImageNet's training pixels, in units of the full range
# (Krizhevsky et al., 2012, section 4.1; the figures of the fb.resnet.torch reference).
COLOR_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
COLOR_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009],
                               [-0.5808, -0.0045, -0.8140],
                               [-0.5836, -0.6948, 0.4203]], np.float32)
BYTES_A_NORMAL = 16


class Augmentation(NamedTuple):
    """What is done to training images on the device; the fields of `config.data` of these names.

    A pipeline hands the seed to the step among its inputs, as `seed_input`: a constant would make
    every seed another program to compile.
    """

    seed: int | jax.Array
    crop_padding: int
    flip: bool
    color_noise: float
    mixup_alpha: float
    cutmix_alpha: float


def seed_input(settings: Augmentation) -> np.ndarray:
    """The seed as the pipelines of training hand it to the step: uint32 []."""
    return np.array(settings.seed & 0xFFFFFFFF, np.uint32)


def augment(images: jax.Array, labels: jax.Array, step: jax.Array, normalization: Normalization,
            settings: Augmentation) -> Batch:
    """Adds colour noise, normalises, pads, crops and flips, and mixes.

    Args:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      step: of training.
      normalization: see `normalize`.
      settings: what to do, with which seed.

    Returns:
      'image' float32 [N, H, W, C] and 'label' int32 [N]. With mixup or CutMix also 'mix_label'
      int32 [N], the label of the image that was mixed in, and 'mix_weight' float32 [N], the share
      of the image's own label: loss = weight * loss(label) + (1 - weight) * loss(mix_label).
    """
    num_images = len(images)
    key = jax.random.fold_in(jax.random.key(settings.seed), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_images))
    if settings.color_noise:
        shift = jax.vmap(lambda key: color_noise(jax.random.fold_in(key, 2),
                                                 settings.color_noise))(keys)
        normalization = normalization | {'mean': normalization['mean'] - shift[:, None, None]}
    images = normalize(images, normalization)

    def one(image, key):
        crop_key, flip_key = jax.random.split(key)
        image = pad_and_crop(image, crop_key, settings.crop_padding)
        if settings.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    batch = {'image': jax.vmap(one)(images, keys), 'label': labels}
    if settings.mixup_alpha or settings.cutmix_alpha:
        # No row has this number.
        batch = mix(batch, jax.random.fold_in(key, 2**32 - 1), settings.mixup_alpha,
                    settings.cutmix_alpha)
    return batch


def pad_and_crop(image: jax.Array, key: jax.Array, padding: int) -> jax.Array:
    """Pads each side with zeros, and crops at random to the size before (section 4.2).

    The image is normalised already: the zeros are the mean image. float32 [H, W, C] in and out.
    """
    if not padding:
        return image
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def color_noise(key: jax.Array, deviation: float) -> jax.Array:
    """A shift of colour along the principal components, float32 [3], in units of the full range.

    The paper's "standard color augmentation" (section 3.4), with deviation 0.1.
    """
    # The sum of 16 random bytes is as good as normal, and the same bits on any number of devices;
    # the last bit of `jax.random.normal` depends on how the batch is cut up.
    total = jax.random.bits(key, (3, BYTES_A_NORMAL), jnp.uint8).sum(-1, dtype=jnp.int32)
    centered = (total - BYTES_A_NORMAL * 255 // 2).astype(jnp.float32)
    unit = np.sqrt(BYTES_A_NORMAL * (256**2 - 1) / 12)
    matrix = (COLOR_EIGENVECTORS * COLOR_EIGENVALUES * (deviation / unit)).astype(np.float32)
    shifts = exact(matrix * centered)
    return shifts[:, 0] + shifts[:, 1] + shifts[:, 2]


def mix(batch: Batch, key: jax.Array, mixup_alpha: float, cutmix_alpha: float) -> Batch:
    """Mixes the images 2i and 2i + 1, which lie on one device, with a weight for each pair.

    Args:
      batch: 'image' float32 [N, H, W, C] and 'label' int32 [N], N even.
      key: of the batch.
      mixup_alpha: of the weights' Beta distribution where images are blended (Zhang et al., 2018);
        0: they never are.
      cutmix_alpha: the same where a rectangle of the partner is pasted in (Yun et al., 2019). With
        both, each pair tosses a coin.

    Returns:
      The batch with 'mix_label' and 'mix_weight'; see `augment`.
    """
    images, labels = batch['image'], batch['label']
    num_images, height, width = images.shape[:3]
    mixup_key, cutmix_key, box_key, coin_key = jax.random.split(key, 4)
    pairs = num_images // 2
    partners = _swap_pairs(images)
    # The partner's share of each pixel, [pairs, H, W].
    share = jnp.zeros((pairs, height, width))
    if mixup_alpha:
        # To 8 bits: the last bits of a Beta variate depend on how the batch is cut up.
        weight = jax.random.beta(mixup_key, mixup_alpha, mixup_alpha, (pairs, 1, 1))
        weight = jnp.round(weight * 256) / 256
        share = jnp.broadcast_to(1 - weight, share.shape)
    if cutmix_alpha:
        area = jax.random.beta(cutmix_key, cutmix_alpha, cutmix_alpha, (pairs, 1, 1))
        center = jax.random.uniform(box_key, (2, pairs, 1, 1))
        half = jnp.sqrt(area) / 2
        y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
        inside = (jnp.abs(y / height - center[0]) <= half) & (
            jnp.abs(x / width - center[1]) <= half)
        cut = jnp.ones((pairs, 1, 1), bool)
        if mixup_alpha:
            cut = jax.random.bernoulli(coin_key, 0.5, (pairs, 1, 1))
        share = jnp.where(cut, inside.astype(jnp.float32), share)
    # What is left of a rectangle that reaches over the edge counts, pixel by pixel.
    mixed_in = jnp.repeat(share, 2, axis=0)[..., None]
    return batch | {
        'image': exact((1 - mixed_in) * images) + exact(mixed_in * partners),
        'mix_label': _swap_pairs(labels),
        'mix_weight': jnp.repeat(1 - share.mean((1, 2)), 2),
    }


def _swap_pairs(x: jax.Array) -> jax.Array:
    """Rows 1, 0, 3, 2, …"""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
