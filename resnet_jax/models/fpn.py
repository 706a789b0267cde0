"""Faster R-CNN on a feature pyramid (T.-Y. Lin et al., "Feature Pyramid Networks", 2017).

The trunk is the whole network and a "neck" that gives features of the same width at the stride of
every stage and at twice the last stride. Anchors of one size belong to each level. A region is
pooled from the level that fits its area, and two dense layers describe it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.heads import Features
from resnet_jax.models.rcnn import KINDS, FasterRCNN
from resnet_jax.regions.pyramid import level_of, roi_align_levels

uniform = nn.initializers.lecun_uniform()  # as in detectron2 and torchvision
MASK_BINS = 14  # of the mask branch, as in Mask R-CNN, figure 4
REGION_SIDE, REGION_STRIDE = 224, 16  # a region of this side is pooled at this stride (eq. 1)


class FasterRCNNFPN(FasterRCNN, kw_only=True):
    """A residual network with a feature pyramid as a detector; see the module and `FasterRCNN`."""

    @property
    def strides(self) -> tuple[int, ...]:
        first = 1 if self.stem_kind == 'cifar' else 4
        return tuple(first * 2**i for i in range(len(self.stage_sizes) + 1))

    def anchor_sizes(self) -> tuple[tuple[float, ...], ...]:
        return tuple((size,) for size in self.settings.anchor_sizes)

    def setup(self) -> None:
        super().setup()
        self.neck = FeaturePyramid(self.settings.neck_features, self.dtype)
        self.hidden = Hidden(self.settings.box_features, self.dtype)

    def trunk(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        maps = self.features(images, train=train)
        return self.neck([maps[stage] for stage in self.stages[1:]])

    def pool(self, features: Features, regions: jax.Array, *, train: bool) -> jax.Array:
        return self.pooled(features, regions, self.settings.roi_size, train=train)

    def pooled(self, features: Features, regions: jax.Array, bins: int, *,
               train: bool) -> jax.Array:
        """As `pool`, with this number of bins in each direction."""
        # The last level is for proposals only.
        s, strides = self.settings, self.strides[:-1]
        levels = level_of(regions, len(strides), side=REGION_SIDE,
                          level=int(math.log2(REGION_STRIDE / strides[0])))
        return roi_align_levels(
            features[:-1], regions, levels, scales=tuple(1 / stride for stride in strides),
            bins=bins, points=s.roi_points, aligned=s.roi_aligned, gathered=not train)

    def describe(self, *pooled: jax.Array, train: bool) -> jax.Array:
        del train
        return functools.reduce(jnp.maximum, map(self.hidden, pooled))

    @property
    def mask_size(self) -> int:
        return 2 * MASK_BINS

    def mask_maps(self, features: Features, regions: jax.Array, *, train: bool) -> jax.Array:
        return self.pooled(features, regions, MASK_BINS, train=train)


class FeaturePyramid(nn.Module):
    """Adds the coarser levels to the finer ones, from the last to the first (section 3).

    Attributes:
      features: filters of every layer.
      dtype: of the computation.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """The levels, the finest first.

        Args:
          maps: [N, h, w, channels] of each stage; each at most half as high and wide, rounded up,
            as the one before it.

        Returns:
          Tuple of [N, h, w, features] for each of them, and a last level with every other position
          of the one before it.
        """
        conv = functools.partial(nn.Conv, self.features, dtype=self.dtype, kernel_init=uniform)
        levels, above = [], None
        for number, x in reversed(list(enumerate(maps, 1))):
            lateral = conv((1, 1), name=f'lateral{number}')(x)
            if above is not None:
                lateral += _doubled(above)[:, :x.shape[1], :x.shape[2]]
            above = lateral
            levels.append(conv((3, 3), padding=1, name=f'output{number}')(lateral))
        return (*reversed(levels), levels[0][:, ::2, ::2])


class Hidden(nn.Module):
    """Two dense layers on the pooled features of a region.

    Attributes:
      features: outputs of each.
      dtype: of the computation.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, R, bins, bins, channels] -> float32 [N, R, features]."""
        dense = functools.partial(nn.DenseGeneral, self.features, dtype=self.dtype,
                                  kernel_init=uniform)
        x = nn.relu(dense(axis=(-3, -2, -1), name='fc6')(x))
        x = nn.relu(dense(name='fc7')(x))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _doubled(x):
    """Every position of [N, h, w, channels] four times: [N, 2 h, 2 w, channels]."""
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)


KINDS['fpn'] = FasterRCNNFPN
