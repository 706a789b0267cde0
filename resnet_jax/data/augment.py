"""Augmentation and normalisation on the device, inside the jitted step, for both pipelines.

Everything is a function of the batch and its key. Each image has its own key, so the result does
not depend on how the batch is sharded over devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import crops
from resnet_jax.data.crops import Crop
from resnet_jax.data.decode import Region
from resnet_jax.data.normalization import exact, normalize
from resnet_jax.data.types import Batch, Normalization
from resnet_jax.errors import UserError

# Principal components of the colours of ImageNet's training pixels, in units of the full range
# (Krizhevsky et al., 2012, section 4.1; the figures of the fb.resnet.torch reference).
COLOR_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
COLOR_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009],
                               [-0.5808, -0.0045, -0.8140],
                               [-0.5836, -0.6948, 0.4203]], np.float32)
BYTES_A_NORMAL = 16


class Augmentation(NamedTuple):
    """What is done to images on the device; the fields of `config.data` of these names."""

    crop_padding: int
    flip: bool
    color_noise: float
    mixup_alpha: float
    cutmix_alpha: float

    def __call__(self, examples: Batch, key: jax.Array | None,
                 normalization: Normalization) -> Batch:
        """Normalises; in training it also adds colour noise, pads, crops and flips, and mixes.

        Args:
          examples: 'image' uint8 [N, H, W, C], and targets [N, …].
          key: of the batch; None in an evaluation.
          normalization: see `normalize`.

        Returns:
          'image' float32 [N, H, W, C], and the targets, of which 'boxes' and 'points' follow the
          pixels. With mixup or CutMix also 'mix_label' int32 [N], the label of the image that was
          mixed in, and 'mix_weight' float32 [N], the share of the image's own label:
          loss = weight * loss(label) + (1 - weight) * loss(mix_label).

        Raises:
          UserError: targets other than class labels cannot be mixed.
        """
        if key is None:
            return examples | {'image': normalize(examples['image'], normalization)}
        mixes = self.mixup_alpha or self.cutmix_alpha
        if mixes and ('label' not in examples or crops.has_coordinates(examples)):
            raise UserError('data.mixup_alpha and data.cutmix_alpha must be 0 for images without '
                            'class labels, or with boxes or points.')
        images = examples['image']
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
        if self.color_noise:
            shift = jax.vmap(lambda key: color_noise(jax.random.fold_in(key, 2),
                                                     self.color_noise))(keys)
            normalization = normalization | {'mean': normalization['mean'] - shift[:, None, None]}
        images = normalize(images, normalization)

        def one(example, key):
            crop = random_crop(key, example['image'].shape, self.crop_padding, self.flip)
            image = pad_and_crop(example['image'], crop, self.crop_padding)
            if self.flip:
                image = jnp.where(crop.mirrored, image[:, ::-1], image)
            return crop.target(example) | {'image': image}

        batch = jax.vmap(one)(examples | {'image': images}, keys)
        if mixes:
            # No row has this number.
            batch = mix(batch, jax.random.fold_in(key, 2**32 - 1), self.mixup_alpha,
                        self.cutmix_alpha)
        return batch


def augmentation(config: ConfigDict) -> Augmentation:
    """What the config says of training images, except what `transforms` does on the host."""
    data = config.data
    on_device = data.train_crop == 'pad'
    return Augmentation(data.crop_padding if on_device else 0, data.flip and on_device,
                        data.color_noise, data.mixup_alpha, data.cutmix_alpha)


def seed_input(seed: int) -> np.ndarray:
    """The seed as the pipelines of training hand it to the step: uint32 [].

    A constant would make every seed another program to compile.
    """
    return np.array(seed & 0xFFFFFFFF, np.uint32)


def examples_of(inputs: Batch) -> Batch:
    """A pipeline's inputs without what it has added to the examples."""
    return {name: value for name, value in inputs.items() if name not in ('mask', 'seed')}


def key_of(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of a training batch."""
    return jax.random.fold_in(jax.random.key(seed), step)


def random_crop(key: jax.Array, shape: tuple[int, ...], padding: int, flip: bool) -> Crop:
    """A crop of the size before, anywhere in the image padded on each side (section 4.2)."""
    crop_key, flip_key = jax.random.split(key)
    top, left = 0, 0
    if padding:
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
    mirrored = jax.random.bernoulli(flip_key) if flip else False
    height, width = shape[:2]
    region = Region(top - padding, left - padding, height, width, closed=True)
    return Crop(region, (height, width), mirrored)


def pad_and_crop(image: jax.Array, crop: Crop, padding: int) -> jax.Array:
    """The region of a `random_crop`, not yet mirrored; zeros outside of the image.

    The image is normalised already: the zeros are the mean image. float32 [H, W, C] in and out.
    """
    if not padding:
        return image
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    start = crop.region.top + padding, crop.region.left + padding, 0
    return jax.lax.dynamic_slice(padded, start, image.shape)


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
