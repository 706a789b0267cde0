"""Detection by several networks, at several scales, with refined boxes (the paper's appendix B).

Pure functions for use under jit. What the paper leaves open is decided here, and said where it is.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.models import rcnn
from resnet_jax.models.rcnn import Detections, FasterRCNN
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.nms import vote
from resnet_jax.tasks.detection import inference
from resnet_jax.tasks.network import normalized

REFINED_NMS = 0.3  # IoU of the suppression in the union of old and new predictions
# Side in pixels that a region should have where the shorter side of the image is 600 pixels. It is
# in proportion at other scales, so that a region has the share of the image that it has there.
REGION_SIDE, SHORT_SIDE = 224, 600


class View(NamedTuple):
    """A batch of images at one scale.

    Attributes:
      image: uint8 [N, H, W, C], on canvases.
      size: int32 [N, 2], height and width of each image on its canvas.
    """

    image: jax.Array | np.ndarray
    size: jax.Array | np.ndarray


class Plan(NamedTuple):
    """What is done with the views of a batch; static under jit.

    Attributes:
      scales: the shorter side, in pixels, of each view from which regions are pooled, ascending.
      places: which of the views these are.
      base: the shorter side of the first view, from which the proposals come.
      refine: whether boxes are refined and voted for.
    """

    scales: tuple[int, ...]
    places: tuple[int, ...]
    base: int
    refine: bool


def detect(models: Sequence[FasterRCNN], plan: Plan, weights: Sequence[tuple[Any, Any]],
           views: Sequence[View]) -> Detections:
    """Detects objects.

    Several networks are an ensemble: each classifies and corrects the regions that any of them
    proposes, and their probabilities and boxes are averaged. The limits of `select` and the rounds
    of a cascade are those of the first network. Masks are those of the first view, averaged over
    the networks.

    Args:
      models: networks of the same classes.
      plan: see `Plan`.
      weights: (variables, normalization) of each network.
      views: of the same images; the first is that of the proposals.

    Returns:
      Detections, in pixels of the first view.
    """
    networks, firsts, proposals = zip(*[_look(model, weight, views, plan)
                                for model, weight in zip(models, weights, strict=True)],
                              strict=True)

    def classify(regions):
        found = [_classify(model, variables, maps, regions, views, plan)
                 for model, variables, maps in networks]
        return tuple(sum(parts) / len(found) for parts in zip(*found, strict=True))

    regions, valid = (jnp.concatenate([getattr(part, name) for part in proposals], 1)
                      for name in ('boxes', 'valid'))
    model = models[0]
    probabilities, boxes, valid = inference.in_rounds(
        2 if plan.refine else model.settings.rounds, classify, regions, valid)
    if not plan.refine:
        return _with_masks(rcnn.select(model, probabilities, boxes, valid), networks, firsts)
    model = model.clone(settings=dataclasses.replace(model.settings, nms=REFINED_NMS))
    found = rcnn.select(model, probabilities, boxes, valid)
    found = found._replace(boxes=rcnn.per_image(model, _vote)(found, probabilities, boxes, valid))
    return _with_masks(found, networks, firsts)


def nearest_pair(regions: jax.Array, plan: Plan) -> jax.Array:
    """The two adjacent scales at which regions come closest to 224 x 224 pixels.

    "Networks on convolutional feature maps", to which the paper refers, takes two adjacent scales
    of an image pyramid; this rule of choice is ours. Distances are those of the logarithms of the
    areas, and 224 pixels are in proportion to a shorter side of 600.

    Args:
      regions: float32 [N, R, 4], in pixels of the first view.
      plan: with two scales at least.

    Returns:
      int32 [N, R], the index of the smaller scale of the two among `plan.scales`.
    """
    target = 2 * jnp.log(REGION_SIDE * plan.base / SHORT_SIDE)
    factors = 2 * jnp.log(jnp.array(plan.scales, jnp.float32) / plan.base)
    areas = jnp.log(jnp.maximum(boxes_lib.area(regions), 1e-6))
    distances = jnp.abs(areas[..., None] + factors - target)
    return (distances[..., :-1] + distances[..., 1:]).argmin(-1).astype(jnp.int32)


def _look(model, weights, views, plan):
    """((model, variables, features of the plan's views), features of the first, proposals)."""
    variables, normalization = weights

    def image_of(view):
        return inference.blanked(normalized(view.image, normalization), view.size)

    first, proposals = inference.propose(model, variables, image_of(views[0]), views[0].size)
    maps = [first if place == 0 else model.apply(
        variables, image_of(views[place]), train=False, method='trunk') for place in plan.places]
    return (model, variables, maps), first, proposals


def _with_masks(found: Detections, networks, firsts) -> Detections:
    """Detections with masks, if all networks have a mask branch."""
    if not all(model.settings.masks for model, *_ in networks):
        return found
    masks = [inference.masks(model, variables, first, found)
             for (model, variables, _), first in zip(networks, firsts, strict=True)]
    total: Any = sum(masks)
    return found._replace(masks=(total / len(masks)).astype(jnp.float16))


def _classify(model, variables, maps, regions, views, plan) -> tuple[jax.Array, jax.Array]:
    """Probabilities and boxes of every class for every region; see `inference.classify`."""
    sizes = views[0].size

    def run(module):
        wanted = module.with_context(regions, sizes)
        pooled = [module.pool(features, inference.to_original(wanted, sizes, views[place].size),
                              train=False)
                  for features, place in zip(maps, plan.places, strict=True)]
        if len(pooled) > 1:
            smaller = nearest_pair(wanted, plan)
            pooled = [_choose(pooled, smaller + step) for step in (0, 1)]
        return module.siblings(module.describe(*pooled, train=False))

    scores, deltas = nn.apply(run, model)(variables)
    return rcnn.predicted(model, scores, deltas, regions, sizes)


def _choose(candidates: Sequence[jax.Array], index) -> jax.Array:
    """Of several [N, R, …], the one that index int32 [N, R] names for each region."""
    index = index.reshape(*index.shape, *[1] * (candidates[0].ndim - 2))
    return functools.reduce(
        lambda chosen, i: jnp.where(index == i, candidates[i], chosen),
        range(1, len(candidates)), candidates[0])


def _vote(found: Detections, probabilities, boxes, valid):
    """The boxes of detections, as means of all boxes of their class around them; see `vote`.

    Args:
      found: after suppression.
      probabilities, boxes, valid: before it; see `rcnn.select`.

    Returns:
      float32 [N, D, 4].
    """
    def of_class(x):  # [N, R, K, …] -> [N, D, R, …]
        return jax.vmap(lambda own, classes: jnp.moveaxis(own[:, classes], 1, 0))(
            x, found.classes)

    voted = vote(found.boxes[:, :, None], of_class(boxes), of_class(probabilities),
                 valid[:, None])
    return voted[:, :, 0]


def weights_of(networks: Sequence[Any]) -> tuple[tuple[Any, Any], ...]:
    """(variables, normalization) of each `Detector`, as `detect` takes them."""
    return tuple((dict(network.variables), dict(network.normalization)) for network in networks)
