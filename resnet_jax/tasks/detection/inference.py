"""Detection in batches of images on canvases; pure functions for use under jit."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.models import rcnn
from resnet_jax.models.heads import Features
from resnet_jax.models.rcnn import Detections, FasterRCNN, Proposals

Array = TypeVar('Array', jax.Array, np.ndarray)


def blanked(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Images with zeros beyond their size.

    Args:
      images: float [N, H, W, C], normalised.
      sizes: int32 [N, 2], height and width of each image on its canvas.
    """
    rows, columns = (jnp.arange(side) for side in images.shape[1:3])
    inside = ((rows[None, :, None] < sizes[:, 0, None, None])
              & (columns[None, None] < sizes[:, 1, None, None]))
    return jnp.where(inside[..., None], images, 0)


def detect(model: FasterRCNN, variables: Mapping[str, Any], images: jax.Array,
           sizes: jax.Array) -> Detections:
    """Detects objects.

    Args:
      model, variables: the network.
      images: float [N, H, W, C], normalised, zeros beyond their size.
      sizes: int32 [N, 2], height and width of each image on its canvas.

    Returns:
      Detections, in pixels of the canvas.
    """
    features, proposals = propose(model, variables, images, sizes)
    found = rcnn.select(model, *in_rounds(
        model.settings.rounds, lambda regions: classify(
            model, variables, features, regions, sizes), proposals.boxes, proposals.valid))
    if not model.settings.masks:
        return found
    return found._replace(masks=masks(model, variables, features, found).astype(jnp.float16))


def masks(model: FasterRCNN, variables: Mapping[str, Any], features: Features,
          found: Detections) -> jax.Array:
    """Masks of detections, float32 [N, D, M, M]; see `FasterRCNN.mask_probabilities`."""
    probabilities: Any = model.apply(variables, features, found.boxes, found.classes,
                                     method='mask_probabilities')
    return probabilities


def propose(model: FasterRCNN, variables: Mapping[str, Any], images: jax.Array,
            sizes: jax.Array) -> tuple[Any, Proposals]:
    """The features of the trunk, and the proposals; see `detect`."""
    def run(module):
        features = module.trunk(images, train=False)
        return features, module.rpn(features)

    features, (scores, deltas) = nn.apply(run, model)(variables)
    anchors = rcnn.anchors_of(model, features)
    return features, rcnn.propose(model, scores, deltas, anchors, sizes, train=False)


def classify(model: FasterRCNN, variables: Mapping[str, Any], features: Features,
             regions: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities and boxes of every class for every region; see `rcnn.predicted`.

    Args:
      model, variables, sizes: see `detect`.
      features: of the trunk.
      regions: float32 [N, R, 4], in pixels of the canvas.
    """
    outputs: Any = model.apply(variables, features, regions, sizes, train=False, method='heads')
    scores, deltas = outputs
    return rcnn.predicted(model, scores, deltas, regions, sizes)


def in_rounds(number: int, classify: Callable, regions: jax.Array,
              valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Classifies regions, and then the boxes that this corrected (MNC, section 4).

    Args:
      number: of rounds, 1 or 2.
      classify: regions -> probabilities and boxes, see `rcnn.predicted`.
      regions: float32 [N, R, 4], in pixels of the canvas.
      valid: bool [N, R].

    Returns:
      Probabilities, boxes and validity of the predictions of all rounds, see `rcnn.select`.
    """
    probabilities, boxes = classify(regions)
    if number == 1:
        return probabilities, boxes, valid
    more_probabilities, more_boxes = classify(best_boxes(probabilities, boxes))
    return (jnp.concatenate([probabilities, more_probabilities], 1),
            jnp.concatenate([boxes, more_boxes], 1), jnp.concatenate([valid, valid], 1))


def best_boxes(probabilities: jax.Array, boxes: jax.Array) -> jax.Array:
    """The box of each region's most probable class, from which features are pooled again.

    Appendix B of the paper does not say which of a region's boxes are refined.

    Args:
      probabilities, boxes: see `rcnn.predicted`.

    Returns:
      float32 [N, R, 4].
    """
    best = probabilities.argmax(-1)[..., None, None]
    return jnp.take_along_axis(boxes, best, 2)[:, :, 0]


def to_original(boxes: Array, sizes: Array, originals: Array) -> Array:
    """Moves boxes from canvases to the images as they were.

    Args:
      boxes: float [N, D, 4], in pixels of the canvas.
      sizes: int [N, 2], height and width of each image on its canvas.
      originals: int [N, 2], height and width of each image.

    Returns:
      float32 [N, D, 4], in pixels of the image.
    """
    xp = jnp if isinstance(boxes, jax.Array) else np
    scale = originals.astype(xp.float32) / sizes.astype(xp.float32)
    return boxes * xp.concatenate([scale[:, ::-1]] * 2, -1)[:, None]
