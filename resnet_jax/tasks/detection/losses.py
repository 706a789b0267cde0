"""The losses of Faster R-CNN, per image and normalised by constants.

S. Ren et al., "Faster R-CNN", 2015, eq. 1; R. Girshick, "Fast R-CNN", 2015, section 2.3. The sums
over the anchors, or regions, of an image are divided by the number that is drawn from every image,
so that the mean over images depends neither on the mesh nor on accumulation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from resnet_jax.data import Batch
from resnet_jax.models.detectors import Settings
from resnet_jax.models.rcnn import Proposals
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.crops import mask_targets
from resnet_jax.regions.matching import NEITHER, POSITIVE, exempt, match
from resnet_jax.regions.sampling import Sample, masks, sample

# What the keys of an image are folded with.
ANCHORS, REGIONS = 0, 1


class Regions(NamedTuple):
    """Regions drawn for training, and what they are to become.

    Attributes:
      boxes: float32 [N, R, 4], in pixels of the input.
      classes: int32 [N, R], that of the object; the number of classes for background.
      targets: float32 [N, R, 4], the boxes of the objects; 0 for background.
      positive: bool [N, R].
      used: bool [N, R]; False for padding.
      masks: float32 [N, P, M, M], the share of a cell of a region that its object covers, or, with
        `Settings.mask_rounding`, 0 or 1; for the P first regions, which hold all positives that
        were drawn. None without masks.
    """

    boxes: jax.Array
    classes: jax.Array
    targets: jax.Array
    positive: jax.Array
    used: jax.Array
    masks: jax.Array | None = None


def smooth_l1(x: jax.Array, beta: float) -> jax.Array:
    """The smooth L1 loss of Fast R-CNN, eq. 3, divided by beta: linear beyond +-beta; L1 with 0."""
    if beta == 0:
        return jnp.abs(x)
    size = jnp.abs(x)
    return jnp.where(size < beta, 0.5 * jnp.square(size) / beta, size - 0.5 * beta)


def draw_anchors(s: Settings, anchors: jax.Array, batch: Batch) -> tuple[Sample, jax.Array]:
    """Draws the anchors of every image that are trained.

    Args:
      s: settings.
      anchors: float32 [A, 4].
      batch: 'boxes' [N, G, 4], 'present', 'ignore' [N, G], 'size' [N, 2] and 'draws', the data of
        a random key for each image.

    Returns:
      The sample, and the index of the object that each anchor is matched with, int32 [N, A].
    """
    trained = batch['present'] & ~batch['ignore']
    overlap = boxes_lib.iou(anchors, batch['boxes'])
    valid = None if s.anchors_outside else boxes_lib.inside(anchors, batch['size'])
    index, label = match(overlap, trained, s.rpn_thresholds[1], (0.0, s.rpn_thresholds[0]),
                         best_of_each=True, valid=valid)
    label = exempt(label, boxes_lib.ioa(anchors, batch['boxes']),
                   batch['present'] & batch['ignore'])
    return sample(_keys(batch, ANCHORS), label, s.rpn_batch, s.rpn_positive), index


def anchor_losses(s: Settings, scores: jax.Array, deltas: jax.Array, anchors: jax.Array,
                  drawn: Sample, index: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The losses of the region proposal network.

    Args:
      s: settings.
      scores, deltas: [N, A] and [N, A, 4], see `rcnn.RegionProposalNetwork`.
      anchors: float32 [A, 4].
      drawn, index: see `draw_anchors`.
      boxes: float32 [N, G, 4], of the objects.

    Returns:
      The binary cross-entropy of objectness, and the smooth L1 loss of the boxes of positives:
      float32 [N] each.
    """
    positive, negative = masks(drawn, scores.shape[1])
    losses = optax.sigmoid_binary_cross_entropy(scores, positive.astype(scores.dtype))
    score = jnp.where(positive | negative, losses, 0).sum(1)
    targets = boxes_lib.encode(jnp.take_along_axis(boxes, index[..., None], 1), anchors)
    box = jnp.where(positive, smooth_l1(deltas - targets, s.rpn_beta).sum(-1), 0).sum(1)
    return score / s.rpn_batch, box / s.rpn_batch


def draw_regions(s: Settings, proposals: Proposals, batch: Batch, num_classes: int,
                 mask_size: int = 0) -> Regions:
    """Draws the regions of every image that are trained, from the proposals and the objects.

    Args:
      s: settings.
      proposals: see `rcnn.propose`.
      batch: as in `draw_anchors`, and 'classes' [N, G]; with masks, 'masks' uint8 [N, G, m, m],
        of the objects, on grids over their boxes.
      num_classes: without background.
      mask_size: cells of a region's mask in each direction; with masks only.
    """
    trained = batch['present'] & ~batch['ignore']
    # In this order, the number of places for objects does not change what is drawn.
    boxes = jnp.concatenate([proposals.boxes, batch['boxes']], 1)
    valid = jnp.concatenate([proposals.valid, trained], 1)
    index, label = _matched(s, boxes, valid, batch)
    drawn = sample(_keys(batch, REGIONS), label, s.roi_batch, s.roi_positive)
    index = jnp.take_along_axis(index, drawn.index, 1)
    regions = jnp.take_along_axis(boxes, drawn.index[..., None], 1)
    return _with_targets(s, regions, index, drawn.positive, drawn.positive | drawn.negative, batch,
                         num_classes, mask_size)


def corrected_regions(s: Settings, regions: Regions, boxes: jax.Array, batch: Batch,
                      num_classes: int, mask_size: int) -> Regions:
    """Regions for stages 4 and 5 of a cascade: the same ones with their corrected boxes.

    They are matched with the objects again, and all of them are trained that are positive or
    negative now. Masks are trained among the first regions, as before.

    Args:
      s, batch, num_classes, mask_size: see `draw_regions`.
      regions: of stages 2 and 3.
      boxes: float32 [N, R, 4], see `cascade.corrected`.
    """
    index, label = _matched(s, boxes, regions.used, batch)
    return _with_targets(s, boxes, index, label == POSITIVE, label != NEITHER, batch, num_classes,
                         mask_size)


def _matched(s: Settings, boxes, valid, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The object of every box, and whether it is positive; see `match`."""
    trained = batch['present'] & ~batch['ignore']
    index, label = match(boxes_lib.iou(boxes, batch['boxes']), trained, s.roi_thresholds[1],
                         s.roi_thresholds, valid=valid)
    label = exempt(label, boxes_lib.ioa(boxes, batch['boxes']), batch['present'] & batch['ignore'])
    return index, label


def _with_targets(s: Settings, boxes, index, positive, used, batch: Batch, num_classes: int,
                  mask_size: int) -> Regions:
    """Regions, and what those that are positive are to become: objects of this index."""
    classes = jnp.where(positive, jnp.take_along_axis(batch['classes'], index, 1), num_classes)
    targets = jnp.take_along_axis(batch['boxes'], index[..., None], 1)
    masks = None
    if s.masks:
        most = most_positive(s)
        crops = jnp.take_along_axis(batch['masks'], index[:, :most, None, None], 1)
        masks = mask_targets(crops, targets[:, :most], boxes[:, :most], mask_size)
        if s.mask_rounding:
            masks = (masks >= 0.5).astype(masks.dtype)
    return jax.lax.stop_gradient(Regions(
        boxes, classes, jnp.where(positive[..., None], targets, 0), positive, used, masks))


def most_positive(s: Settings) -> int:
    """The most positive regions that are drawn from an image; they come first."""
    return max(1, int(s.roi_batch * s.roi_positive))


def region_losses(s: Settings, scores: jax.Array, deltas: jax.Array,
                  regions: Regions) -> tuple[jax.Array, jax.Array]:
    """The losses of the last stage.

    Args:
      s: settings.
      scores, deltas: [N, R, classes + 1] and [N, R, classes, 4], see `FasterRCNN.heads`.
      regions: see `draw_regions`.

    Returns:
      The cross-entropy of classes, and the smooth L1 loss of the boxes of positives for their own
      class: float32 [N] each.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, regions.classes)
    score = jnp.where(regions.used, losses, 0).sum(1)
    targets = boxes_lib.encode(regions.targets, regions.boxes, s.box_weights)
    # One-hot, as the gradient of a gather would be a scatter. The background has a row of zeros.
    own = jax.nn.one_hot(regions.classes, deltas.shape[2], dtype=deltas.dtype)
    deltas = (deltas * own[..., None]).sum(2)
    box = jnp.where(regions.positive, smooth_l1(deltas - targets, s.box_beta).sum(-1), 0).sum(1)
    return score / s.roi_batch, box / s.roi_batch


def mask_loss(s: Settings, scores: jax.Array, regions: Regions) -> jax.Array:
    """The loss of the mask branch (He et al., "Mask R-CNN", 2017, section 3).

    Args:
      s: settings.
      scores: float32 [N, P, M, M], before the sigmoid, of the P first regions for their own class.
      regions: see `draw_regions`.

    Returns:
      The binary cross-entropy, averaged over the cells of a region, and summed over the positives;
      over the most positives that an image can have: float32 [N].
    """
    assert regions.masks is not None
    losses = optax.sigmoid_binary_cross_entropy(scores, regions.masks.astype(scores.dtype))
    positive = regions.positive[:, :scores.shape[1]]
    return jnp.where(positive, losses.mean((2, 3)), 0).sum(1) / most_positive(s)


def _keys(batch: Batch, purpose: int) -> jax.Array:
    keys = jax.random.wrap_key_data(batch['draws'])
    return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)
