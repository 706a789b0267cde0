"""Faster R-CNN on residual networks (appendix A; S. Ren et al., "Faster R-CNN", 2015).

All stages but the last, the "trunk", are computed once per image, and the region proposal network
works on their output. The last stage is computed for every region, which is pooled from that
output by RoIAlign; its mean feeds two siblings, for the class and for the box. detectron2 calls
this architecture "C4". Parameters have the same paths as in the classifier, so the weights of any
classifier can start a detector.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resnet_jax.models import detectors
from resnet_jax.models.backbone import average
from resnet_jax.models.blocks import BottleneckBlock
from resnet_jax.models.detectors import Settings
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.masks import MaskHead, of_classes
from resnet_jax.models.registry import family_of
from resnet_jax.models.resnet import ResNet, ResNetBackbone
from resnet_jax.regions import anchors as anchors_lib
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.nms import nms, nms_by_class
from resnet_jax.regions.roi_align import roi_align

HEADS = ('rpn', 'box', 'mask')  # the parts that a classifier does not have
MIN_SIDE = 0.01  # of a detection, in pixels of the input; clipping makes boxes that are smaller
CHUNK_BYTES = 2**26  # of the pooled features of one chunk of regions


class Proposals(NamedTuple):
    """Regions that may contain an object, the best first.

    Attributes:
      boxes: float32 [N, R, 4], in pixels of the input.
      scores: float32 [N, R], before the sigmoid.
      valid: bool [N, R]; False for padding.
    """

    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


class Detections(NamedTuple):
    """Detected objects, the best first.

    Attributes:
      boxes: float32 [N, D, 4], in pixels of the input.
      scores: float32 [N, D], probabilities; 0 for padding.
      classes: int32 [N, D].
      valid: bool [N, D]; False for padding.
      masks: float16 [N, D, M, M], the probability that a cell of the box shows the object; None
        without a mask branch.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


class FasterRCNN(ResNetBackbone, kw_only=True):
    """A residual network as a detector; see the module and `ResNetBackbone`.

    Attributes:
      num_classes: without background.
      settings: see `resnet_jax.models.detectors`.
    """

    num_classes: int
    settings: Settings = Settings()

    @property
    def shared(self) -> str:
        """The last stage of the trunk, such as 'stage3'."""
        return self.stages[-2]

    @property
    def stride(self) -> int:
        """Pixels of the input between positions of the trunk's output."""
        return (1 if self.stem_kind == 'cifar' else 4) * 2 ** (len(self.stage_sizes) - 2)

    @property
    def skips_bins(self) -> bool:
        """Whether every other bin is enough for the last stage.

        A bottleneck with its stride in the first 1x1 convolution reads no others, so they are not
        computed, and the stage has stride 1 instead.
        """
        return self.block is BottleneckBlock and self.stride_in == 'v1'

    def stage_stride(self, i: int) -> int:
        last = i == len(self.stage_sizes) - 1
        return 1 if last and self.skips_bins else super().stage_stride(i)

    def stage_batch(self, i: int) -> int | None:
        """The last stage normalises the regions of a virtual batch together."""
        size = super().stage_batch(i)
        last = i == len(self.stage_sizes) - 1
        regions = self.settings.roi_batch + self.settings.context  # and the whole image
        return size * regions if last and size is not None else size

    def setup(self):
        super().setup()
        self.rpn = RegionProposalNetwork(
            self.settings.rpn_features,
            len(self.settings.anchor_sizes) * len(self.settings.anchor_ratios), self.dtype)
        self.box = BoxHead(self.num_classes)
        if self.settings.masks:
            self.mask = MaskHead(self.num_classes, self.settings.mask_features, 0, self.dtype)

    @property
    def mask_size(self) -> int:
        """Cells of a mask in each direction: twice those of the last stage's output."""
        return 2 * -(-self.settings.roi_size // 2)

    def trunk(self, images, *, train: bool):
        """The features that all regions share.

        Args:
          images: float [N, H, W, C], normalised.
          train: see `Backbone.features`.

        Returns:
          [N, ceil(H / stride), ceil(W / stride), channels].
        """
        return self.features(images, train=train, upto=self.shared)[self.shared]

    def heads(self, features, regions, sizes, *, train: bool):
        """Classifies regions, and corrects their boxes.

        Args:
          features: of the trunk [N, h, w, channels].
          regions: float32 [N, R, 4], in pixels of the input.
          sizes: int32 [N, 2], height and width of each image on the input; read for the context.
          train: see `Backbone.features`.

        Returns:
          scores: float32 [N, R, classes + 1], before the softmax; the background is last.
          deltas: float32 [N, R, classes, 4], see `boxes.decode`.
        """
        return self.heads_and_maps(features, regions, sizes, train=train)[:2]

    def heads_and_maps(self, features, regions, sizes, *, train: bool):
        """The outputs of `heads`, and the maps of the same regions; see `maps`."""
        maps = self.maps(self.pool(features, self.with_context(regions, sizes)), train=train)
        return *self.siblings(averaged(maps)), maps[:, :regions.shape[1]]

    def mask_scores(self, maps, classes):
        """Masks of regions.

        Args:
          maps: see `maps`.
          classes: int32 [N, R], that of each region.

        Returns:
          float32 [N, R, mask_size, mask_size], before the sigmoid.
        """
        scores = self.mask(maps.reshape(-1, *maps.shape[2:]))
        return of_classes(scores.reshape(*maps.shape[:2], *scores.shape[1:]), classes)

    def mask_probabilities(self, features, boxes, classes):
        """Masks of detections, whose features are pooled again from their boxes.

        Args:
          features: of the trunk [N, h, w, channels].
          boxes, classes: see `Detections`.

        Returns:
          float32 [N, D, mask_size, mask_size].
        """
        maps = self.maps(self.pool(features, boxes), train=False)
        return jax.nn.sigmoid(self.mask_scores(maps, classes))

    def with_context(self, regions, sizes):
        """The regions of `heads`, and, if the settings ask for context, the whole image behind."""
        if not self.settings.context:
            return regions
        whole = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], -1)
        return jnp.concatenate([regions, whole.astype(regions.dtype)[:, None]], 1)

    def pool(self, features, regions):
        """The trunk's features of every region, pooled.

        Args:
          features, regions: see `heads`.

        Returns:
          [N, R, bins, bins, channels].
        """
        s = self.settings
        step = 2 if self.skips_bins else 1
        bins = -(-s.roi_size // step)
        chunk = CHUNK_BYTES // (bins * bins * features.shape[-1] * features.dtype.itemsize)
        return roi_align(
            features, regions, bins=s.roi_size, scale=1 / self.stride, points=s.roi_points,
            aligned=s.roi_aligned, step=step, chunk=max(1, min(chunk, 128)))

    def describe(self, *pooled, train: bool):
        """The output of `maps`, averaged over its positions: float32 [N, R, channels]."""
        return averaged(self.maps(*pooled, train=train))

    def maps(self, *pooled, train: bool):
        """The last stage's output for every region.

        Args:
          *pooled: see `pool`. Of several scales, the outputs are merged by their maximum
            ("maxout", appendix B).
          train: see `Backbone.features`.

        Returns:
          [N, R, h, w, channels].
        """
        outputs = [self.run(self.stages[-1], x.reshape(-1, *x.shape[2:]), train=train)
                   for x in pooled]
        merged = functools.reduce(jnp.maximum, outputs)
        return merged.reshape(*pooled[0].shape[:2], *merged.shape[1:])

    def siblings(self, described):
        """The outputs of `heads` for the described regions of `with_context`."""
        if self.settings.context:
            own, whole = described[:, :-1], described[:, -1:]
            described = jnp.concatenate([own, jnp.broadcast_to(whole, own.shape)], -1)
        return self.box(described)

    def __call__(self, images, *, train: bool):
        """The outputs of all parts, with the whole image as the only region.

        Args:
          images, train: see `Backbone.features`.

        Returns:
          Dict of 'proposal_scores', 'proposal_deltas', 'scores' and 'deltas', see
          `RegionProposalNetwork` and `heads`; and 'masks' of class 0, if there is a mask branch.
        """
        features = self.trunk(images, train=train)
        scores, deltas = self.rpn(features)
        height, width = images.shape[1:3]
        sizes = jnp.tile(jnp.array([[height, width]], jnp.int32), (len(images), 1))
        regions = jnp.tile(jnp.array([[[0, 0, width, height]]], jnp.float32), (len(images), 1, 1))
        class_scores, class_deltas, maps = self.heads_and_maps(
            features, regions, sizes, train=train)
        found = {'proposal_scores': scores, 'proposal_deltas': deltas, 'scores': class_scores,
                 'deltas': class_deltas}
        if self.settings.masks:
            found['masks'] = self.mask_scores(maps, jnp.zeros(maps.shape[:2], jnp.int32))
        return found


class RegionProposalNetwork(nn.Module):
    """Scores and corrects every anchor: a 3x3 layer and two siblings (Faster R-CNN, section 3.1).

    Attributes:
      features: filters of the 3x3 layer.
      num_anchors: at each position.
      dtype: of the computation.
    """

    features: int
    num_anchors: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, h, w, channels] -> scores float32 [N, h * w * A], deltas float32 [N, h * w * A, 4].

        The order is that of `anchors.grid`. Scores are those before the sigmoid.
        """
        layer = functools.partial(nn.Conv, dtype=self.dtype,
                                  kernel_init=nn.initializers.normal(0.01))
        x = nn.relu(layer(self.features, (3, 3), padding=1, name='conv')(x))
        scores = layer(self.num_anchors, (1, 1), name='score')(x)
        deltas = layer(4 * self.num_anchors, (1, 1), name='delta')(x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return (scores.astype(wide).reshape(x.shape[0], -1),
                deltas.astype(wide).reshape(x.shape[0], -1, 4))


class BoxHead(nn.Module):
    """The siblings that classify a region and correct its box."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        """float32 [N, R, channels] -> scores [N, R, classes + 1], deltas [N, R, classes, 4]."""
        scores = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01),
                          name='score')(x)
        deltas = nn.Dense(4 * self.num_classes, kernel_init=nn.initializers.normal(0.001),
                          name='delta')(x)
        return scores, deltas.reshape(*x.shape[:2], self.num_classes, 4)


def averaged(maps):
    """Maps [N, R, h, w, channels], averaged over their positions: float32 [N, R, channels]."""
    return average(maps.reshape(-1, *maps.shape[2:])).reshape(*maps.shape[:2], -1)


def anchors_of(model: FasterRCNN, height: int, width: int) -> jax.Array:
    """All anchors of a feature map, float32 [height * width * A, 4], in pixels of the input.

    The paper's anchors include their last pixel; here they are one pixel wider and higher instead.
    """
    s = model.settings
    base = anchors_lib.base_anchors(s.anchor_sizes, s.anchor_ratios, s.anchor_rule)
    if s.anchor_rule == 'paper':
        base = base + jnp.array([0, 0, 1, 1], jnp.float32)
    return anchors_lib.grid(base, height, width, model.stride)


def propose(model: FasterRCNN, scores, deltas, anchors, sizes, *, train: bool) -> Proposals:
    """Chooses regions from the outputs of the region proposal network. No gradient passes.

    Args:
      model: its settings are read.
      scores, deltas: see `RegionProposalNetwork`.
      anchors: float32 [A, 4], see `anchors_of`.
      sizes: int32 [N, 2], height and width of each image on the input.
      train: which of the pairs of settings apply.
    """
    s = model.settings
    before, after = s.rpn_pre_nms[not train], s.rpn_post_nms[not train]
    after = min(after, scores.shape[1])

    def choose(scores, deltas, sizes):
        top, index = jax.lax.top_k(scores, min(before, scores.shape[1]))
        deltas = jnp.take_along_axis(deltas, index[..., None], 1)
        boxes = decode(model, deltas, anchors[index], (1.0, 1.0, 1.0, 1.0))
        boxes = boxes_lib.clip(boxes, sizes)
        sides = boxes_lib.sides(boxes)
        valid = jnp.all(sides > 0, -1) & jnp.all(sides >= s.rpn_min_size, -1)
        kept = nms(boxes, top, valid, s.rpn_nms, after)
        take = functools.partial(jnp.take_along_axis, axis=1)
        return Proposals(take(boxes, kept.index[..., None]), take(top, kept.index), kept.valid)

    return jax.lax.stop_gradient(per_image(model, choose)(
        jax.lax.stop_gradient(scores), jax.lax.stop_gradient(deltas), sizes))


def decode(model: FasterRCNN, deltas, boxes, weights) -> jax.Array:
    """Boxes from corrections, with the model's limit of scales; see `boxes.decode`."""
    limit = boxes_lib.MAX_LOG_SCALE if model.settings.clip_scales else None
    return boxes_lib.decode(deltas, boxes, weights, max_log_scale=limit)


def predicted(model: FasterRCNN, scores, deltas, regions, sizes) -> tuple[jax.Array, jax.Array]:
    """Probabilities and boxes of every class.

    Args:
      model: its settings are read.
      scores, deltas: see `FasterRCNN.heads`.
      regions: float32 [N, R, 4], in pixels of the input.
      sizes: int32 [N, 2], height and width of each image on the input.

    Returns:
      float32 [N, R, classes], without background; and [N, R, classes, 4], within the images.
    """
    boxes = decode(model, deltas, regions[:, :, None], model.settings.box_weights)
    return jax.nn.softmax(scores)[..., :-1], boxes_lib.clip(boxes, sizes)


def select(model: FasterRCNN, probabilities, boxes, valid) -> Detections:
    """Detections: suppression within each class, then the best of all.

    A box that is narrower or lower than `MIN_SIDE` is none, as in torchvision.

    Args:
      model: its settings are read.
      probabilities, boxes: see `predicted`.
      valid: bool [N, R], which regions take part.
    """
    s = model.settings

    def choose(probabilities, boxes, valid):
        classes = probabilities.shape[-1]
        number = min(s.detections, probabilities.shape[1] * classes)
        big_enough = jnp.all(boxes_lib.sides(boxes) >= MIN_SIDE, -1)
        probabilities = jnp.where(big_enough, probabilities, 0)
        kept = nms_by_class(boxes, probabilities, valid, s.nms, number,
                            least_score=s.score_threshold)
        flat = boxes.reshape(boxes.shape[0], -1, 4)
        scores = probabilities.reshape(boxes.shape[0], -1)
        return Detections(
            jnp.take_along_axis(flat, kept.index[..., None], 1),
            jnp.where(kept.valid, jnp.take_along_axis(scores, kept.index, 1), 0),
            kept.index % classes, kept.valid)

    return per_image(model, choose)(probabilities, boxes, valid)


def per_image(model: FasterRCNN, function: Callable) -> Callable:
    """Runs a function of single images on each device for its own images.

    Loops that end on a condition, as in suppression, would otherwise agree over all devices on
    every iteration, and top_k would gather what it sorts.

    Args:
      model: its mesh is read.
      function: takes and returns trees of arrays with a leading image axis.
    """
    if model.mesh is None or model.mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=model.mesh, in_specs=P('data'), out_specs=P('data'),
                         check_vma=False)


def create(config: ConfigDict) -> FasterRCNN:
    """The detector of `config.model`, whose field `detector` has the settings.

    Raises:
      ConfigError: a field is out of its range, or the family has no residual stages.
    """
    network = family_of(config.model).create(config.model)
    if not isinstance(network, ResNet):
        raise ConfigError('a detector needs a residual network: model.family must be imagenet or '
                          f'cifar, got {config.model.family}.')
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)
              if field.name not in ('parent', 'name')}
    return FasterRCNN(**fields, settings=detectors.settings(config.model.detector))
