"""Faster R-CNN on residual networks (appendix A; S. Ren et al., "Faster R-CNN", 2015).

The "trunk" turns an image into features of one or several levels, once. The region proposal network
chooses regions on all levels, each region is pooled from the features by RoIAlign and described,
and two siblings classify the description and correct the box. Where the trunk ends and what
describes a region is decided by subclasses: see `resnet_jax.models.c4` and `resnet_jax.models.fpn`.
Parameters have the paths of the classifier, so the weights of any classifier can start a detector.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resnet_jax.models import detectors
from resnet_jax.models.backbone import Backbone
from resnet_jax.models.detectors import Settings
from resnet_jax.models.heads import BoxHead, Features, RegionProposalNetwork
from resnet_jax.models.masks import MaskHead, of_classes
from resnet_jax.models.resnet import ResNet, ResNetBackbone, fields_of, trunk_of
from resnet_jax.regions import anchors as anchors_lib
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.nms import nms, nms_by_class

HEADS = ('rpn', 'box', 'mask', 'neck', 'hidden')  # the parts that a classifier does not have
MIN_SIDE = 0.01  # of a detection, in pixels of the input; clipping makes boxes that are smaller


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
    def strides(self) -> tuple[int, ...]:
        """Pixels of the input between positions of the features of each level."""
        raise NotImplementedError

    def anchor_sizes(self) -> tuple[tuple[float, ...], ...]:
        """The sizes of the anchors of each level."""
        raise NotImplementedError

    @property
    def mask_size(self) -> int:
        """Cells of a mask in each direction."""
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        s = self.settings
        self.rpn = RegionProposalNetwork(
            s.rpn_features, len(self.anchor_sizes()[0]) * len(s.anchor_ratios), self.dtype)
        self.box = BoxHead(self.num_classes, s.background_box)
        if s.masks:
            classes = 1 if s.cascade else self.num_classes + s.background_box
            self.mask = MaskHead(classes, s.mask_features, s.mask_layers, self.dtype)

    def trunk(self, images: jax.Array, *, train: bool) -> Features:
        """The features that all regions share.

        Args:
          images: float [N, H, W, C], normalised.
          train: see `Backbone.features`.

        Returns:
          [N, ceil(H / stride), ceil(W / stride), channels] for the stride of each level: an array,
          or a tuple if there can be several.
        """
        raise NotImplementedError

    def pool(self, features: Features, regions: jax.Array, *, train: bool) -> jax.Array:
        """The features of every region, pooled.

        Args:
          features, regions, train: see `heads`.

        Returns:
          [N, R, bins, bins, channels].
        """
        raise NotImplementedError

    def describe(self, *pooled: jax.Array, train: bool) -> jax.Array:
        """What the siblings see of every region.

        Args:
          *pooled: see `pool`. Those of several scales are merged by their maximum ("maxout",
            appendix B).
          train: see `Backbone.features`.

        Returns:
          float32 [N, R, channels].
        """
        raise NotImplementedError

    def heads(self, features: Features, regions: jax.Array, sizes: jax.Array, *,
              train: bool) -> tuple[jax.Array, jax.Array]:
        """Classifies regions, and corrects their boxes.

        Args:
          features: of the trunk.
          regions: float32 [N, R, 4], in pixels of the input.
          sizes: int32 [N, 2], height and width of each image on the input; read for the context.
          train: see `Backbone.features`.

        Returns:
          scores: float32 [N, R, classes + 1], before the softmax; the background is last.
          deltas: float32 [N, R, classes, 4], see `boxes.decode`.
        """
        regions = self.with_context(regions, sizes)
        return self.siblings(self.describe(
            self.pool(features, regions, train=train), train=train))

    def mask_maps(self, features: Features, regions: jax.Array, *, train: bool) -> jax.Array:
        """What the mask branch sees of regions, [N, R, mask_size / 2, mask_size / 2, channels].

        Args:
          features, regions, train: see `heads`.
        """
        raise NotImplementedError

    def heads_and_masks(self, features: Features, regions: jax.Array, classes: jax.Array,
                        sizes: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The outputs of `heads`, and masks of the first regions.

        Args:
          features, regions, sizes, train: see `heads`.
          classes: int32 [N, P], of the P first regions.

        Returns:
          scores, deltas: see `heads`.
          masks: see `mask_scores`.
        """
        maps = self.mask_maps(features, regions[:, :classes.shape[1]], train=train)
        return (*self.heads(features, regions, sizes, train=train),
                self.mask_scores(maps, classes))

    def mask_scores(self, maps: jax.Array, classes: jax.Array) -> jax.Array:
        """Masks of regions for their own classes.

        Args:
          maps: see `mask_maps`.
          classes: int32 [N, R].

        Returns:
          float32 [N, R, mask_size, mask_size], before the sigmoid.
        """
        scores = self.mask(maps.reshape(-1, *maps.shape[2:]))
        return of_classes(scores.reshape(*maps.shape[:2], *scores.shape[1:]), classes)

    def mask_probabilities(self, features: Features, boxes: jax.Array,
                           classes: jax.Array) -> jax.Array:
        """Masks of detections, whose features are pooled again from their boxes.

        Args:
          features: of the trunk.
          boxes, classes: see `Detections`.

        Returns:
          float32 [N, D, mask_size, mask_size].
        """
        maps = self.mask_maps(features, boxes, train=False)
        return jax.nn.sigmoid(self.mask_scores(maps, classes))

    def with_context(self, regions: jax.Array, sizes: jax.Array) -> jax.Array:
        """The regions of `heads`, and, if the settings ask for context, the whole image behind."""
        if not self.settings.context:
            return regions
        whole = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], -1)
        return jnp.concatenate([regions, whole.astype(regions.dtype)[:, None]], 1)

    def siblings(self, described: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The outputs of `heads` for the described regions of `with_context`."""
        if self.settings.context:
            own, whole = described[:, :-1], described[:, -1:]
            described = jnp.concatenate([own, jnp.broadcast_to(whole, own.shape)], -1)
        return self.box(described)

    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
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
        outputs: tuple[jax.Array, ...]
        if self.settings.masks:
            classes = jnp.zeros(regions.shape[:2], jnp.int32)
            outputs = self.heads_and_masks(features, regions, classes, sizes, train=train)
        else:
            outputs = self.heads(features, regions, sizes, train=train)
        names = 'proposal_scores', 'proposal_deltas', 'scores', 'deltas', 'masks'
        return dict(zip(names, (scores, deltas, *outputs), strict=False))


def anchors_of(model: FasterRCNN, features: Features) -> tuple[jax.Array, ...]:
    """The anchors of each level, float32 [height * width * A, 4], in pixels of the input.

    The paper's anchors include their last pixel; here they are one pixel wider and higher instead.

    Args:
      model: its settings and strides are read.
      features: of the trunk; their shapes are read.
    """
    s = model.settings

    def of_level(x, stride, sizes):
        base = anchors_lib.base_anchors(sizes, s.anchor_ratios, s.anchor_rule)
        if s.anchor_rule == 'paper':
            base = base + jnp.array([0, 0, 1, 1], jnp.float32)
        height, width = x.shape[1:3]
        return anchors_lib.grid(base, height, width, stride)

    return tuple(map(of_level, jax.tree.leaves(features), model.strides, model.anchor_sizes()))


def propose(model: FasterRCNN, scores: jax.Array, deltas: jax.Array, anchors: Sequence[jax.Array],
            sizes: jax.Array, *, train: bool) -> Proposals:
    """Chooses regions from the outputs of the region proposal network. No gradient passes.

    The best anchors of each level are corrected, and suppressed within their level. The best boxes
    of all levels are the proposals.

    Args:
      model: its settings are read.
      scores, deltas: see `RegionProposalNetwork`.
      anchors: see `anchors_of`.
      sizes: int32 [N, 2], height and width of each image on the input.
      train: which of the pairs of settings apply.
    """
    s = model.settings
    before, after = s.rpn_pre_nms[not train], s.rpn_post_nms[not train]
    starts = np.cumsum([0, *(len(level) for level in anchors)])

    def best(scores, deltas, number):
        """The boxes of a level, with scores and the number of the level."""
        level = slice(starts[number], starts[number + 1])
        top, index = jax.lax.top_k(scores[:, level], min(before, len(anchors[number])))
        deltas = jnp.take_along_axis(deltas[:, level], index[..., None], 1)
        boxes = decode(model, deltas, anchors[number][index], (1.0, 1.0, 1.0, 1.0))
        return boxes, top, jnp.full(top.shape, number)

    def choose(scores, deltas, sizes):
        boxes, top, levels = (jnp.concatenate(parts, 1) for parts in zip(
            *(best(scores, deltas, number) for number in range(len(anchors))), strict=True))
        boxes = boxes_lib.clip(boxes, sizes)
        sides = boxes_lib.sides(boxes)
        valid = jnp.all(sides > 0, -1) & jnp.all(sides >= s.rpn_min_size, -1)
        kept = nms(boxes, top, valid, s.rpn_nms, min(after, top.shape[1]), classes=levels)
        take = functools.partial(jnp.take_along_axis, axis=1)
        return Proposals(take(boxes, kept.index[..., None]), take(top, kept.index), kept.valid)

    return jax.lax.stop_gradient(per_image(model, choose)(
        jax.lax.stop_gradient(scores), jax.lax.stop_gradient(deltas), sizes))


def decode(model: FasterRCNN, deltas: jax.Array, boxes: jax.Array,
           weights: tuple[float, float, float, float]) -> jax.Array:
    """Boxes from corrections, with the model's limit of scales; see `boxes.decode`."""
    limit = boxes_lib.MAX_LOG_SCALE if model.settings.clip_scales else None
    return boxes_lib.decode(deltas, boxes, weights, max_log_scale=limit)


def predicted(model: FasterRCNN, scores: jax.Array, deltas: jax.Array, regions: jax.Array,
              sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
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


def select(model: FasterRCNN, probabilities: jax.Array, boxes: jax.Array,
           valid: jax.Array) -> Detections:
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


def per_image(model: Backbone, function: Callable) -> Callable:
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


KINDS: dict[str, type[FasterRCNN]] = {}  # by the names that `config.model.detector.kind` takes


def create(config: ConfigDict) -> FasterRCNN:
    """The detector of `config.model`, whose field `detector` has the settings.

    Raises:
      ConfigError: a field is out of its range, or the family has no residual stages.
    """
    return of_fields(config.model)


def of_fields(section: Mapping[str, Any]) -> FasterRCNN:
    """The detector of a section `model` of a config; see `create`."""
    network = trunk_of(section, 'a detector')
    settings = detectors.settings(section['detector'], len(network.stage_sizes))
    return KINDS[settings.kind](**fields_of(network, ResNet), settings=settings)
