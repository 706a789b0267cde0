"""Faster R-CNN "C4": the last stage of the network runs on every region (appendix A).

All stages but the last are the trunk, and the mean of the last stage's output describes a region.
"C4" is detectron2's name: in an ImageNet network the trunk ends at conv4_x.
"""

import functools

import jax
import jax.numpy as jnp

from resnet_jax.models.backbone import average
from resnet_jax.models.blocks import BottleneckBlock
from resnet_jax.models.cascade import masked
from resnet_jax.models.rcnn import KINDS, FasterRCNN
from resnet_jax.regions.roi_align import roi_align

CHUNK_BYTES = 2**26  # of the pooled features of one chunk of regions


class FasterRCNNC4(FasterRCNN, kw_only=True):
    """A residual network as a detector; see the module and `FasterRCNN`."""

    @property
    def shared(self) -> str:
        """The last stage of the trunk, such as 'stage3'."""
        return self.stages[-2]

    @property
    def strides(self) -> tuple[int, ...]:
        return ((1 if self.stem_kind == 'cifar' else 4) * 2 ** (len(self.stage_sizes) - 2),)

    def anchor_sizes(self) -> tuple[tuple[float, ...], ...]:
        return (self.settings.anchor_sizes,)

    @property
    def skips_bins(self) -> bool:
        """Whether every other bin is enough for the last stage.

        A bottleneck with its stride in the first 1x1 convolution reads no others, unless its
        shortcut averages them. They are then not computed, and the stage has stride 1 instead.
        """
        return (self.block is BottleneckBlock and self.stride_in == 'v1'
                and self.shortcut != 'D')

    def stage_stride(self, i: int) -> int:
        last = i == len(self.stage_sizes) - 1
        return 1 if last and self.skips_bins else super().stage_stride(i)

    def stage_batch(self, i: int) -> int | None:
        """The last stage normalises the regions of a virtual batch together."""
        size = super().stage_batch(i)
        last = i == len(self.stage_sizes) - 1
        regions = self.settings.roi_batch + self.settings.context  # and the whole image
        return size * regions if last and size is not None else size

    def trunk(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.features(images, train=train, upto=self.shared)[self.shared]

    def pool(self, features: jax.Array, regions: jax.Array, *, train: bool) -> jax.Array:
        del train
        s, step = self.settings, 2 if self.skips_bins else 1
        bins = -(-s.roi_size // step)
        chunk = CHUNK_BYTES // (bins * bins * features.shape[-1] * features.dtype.itemsize)
        return roi_align(
            features, regions, bins=s.roi_size, scale=1 / self.strides[0], points=s.roi_points,
            aligned=s.roi_aligned, step=step, chunk=max(1, min(chunk, 128)))

    def describe(self, *pooled: jax.Array, train: bool) -> jax.Array:
        maps = self.maps(*pooled, train=train)
        return self.described(maps, self.mask_scores(maps) if self.settings.cascade else None)

    def described(self, maps: jax.Array, masks: jax.Array | None) -> jax.Array:
        """What the siblings see of maps; in a cascade, with that of the masked maps behind it.

        Args:
          maps: see `maps`.
          masks: see `mask_scores`; read in a cascade only.

        Returns:
          float32 [N, R, channels], or twice as many.
        """
        if not self.settings.cascade:
            return _averaged(maps)
        assert masks is not None
        return jnp.concatenate([_averaged(maps), _averaged(masked(maps, masks))], -1)

    def maps(self, *pooled: jax.Array, train: bool) -> jax.Array:
        """The last stage's output for every region, [N, R, h, w, channels]; see `describe`."""
        outputs = [self.run(self.stages[-1], x.reshape(-1, *x.shape[2:]), train=train)
                   for x in pooled]
        merged = functools.reduce(jnp.maximum, outputs)
        return merged.reshape(*pooled[0].shape[:2], *merged.shape[1:])

    @property
    def mask_size(self) -> int:
        return 2 * -(-self.settings.roi_size // 2)  # twice the last stage's output

    def mask_maps(self, features: jax.Array, regions: jax.Array, *, train: bool) -> jax.Array:
        return self.maps(self.pool(features, regions, train=train), train=train)

    def heads_and_masks(self, features: jax.Array, regions: jax.Array, classes: jax.Array,
                        sizes: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        # The last stage runs once, for both.
        wanted = self.with_context(regions, sizes)
        maps = self.maps(self.pool(features, wanted, train=train), train=train)
        most = classes.shape[1]
        # In a cascade, every region needs its mask.
        masks = self.mask_scores(maps if self.settings.cascade else maps[:, :most], classes)
        return (*self.siblings(self.described(maps, masks)), masks[:, :most])

    def mask_scores(self, maps: jax.Array, classes: jax.Array | None = None) -> jax.Array:
        # A cascade's masks have no class.
        if not self.settings.cascade:
            assert classes is not None
            return super().mask_scores(maps, classes)
        scores = self.mask(maps.reshape(-1, *maps.shape[2:]))[..., 0]
        return scores.reshape(*maps.shape[:2], *scores.shape[1:])


def _averaged(maps):
    """Maps [N, R, h, w, channels], averaged over their positions: float32 [N, R, channels]."""
    return average(maps.reshape(-1, *maps.shape[2:])).reshape(*maps.shape[:2], -1)


KINDS['c4'] = FasterRCNNC4
