"""The parts of a detector, which run once per image or once per region; for its cost."""

from collections.abc import Callable
from typing import Any

import jax

from resnet_jax.models.backbone import average
from resnet_jax.models.rcnn import FasterRCNN
from resnet_jax.tasks.detection.losses import most_positive
from resnet_jax.tasks.task import Part

TRUNK, PROPOSALS, REGION = 'trunk', 'proposals', 'region'
MASK, DETECTION = 'mask', 'detection'  # masks of detections need the last stage again


def parts(model: FasterRCNN, variables: Any, images: jax.ShapeDtypeStruct) -> list[Part]:
    """See `Task.parts`. Matching, suppression and RoIAlign are not among them."""
    s, last = model.settings, model.stages[-1]
    found, features = [], images
    for name in model.stages[:-1]:
        found.append(Part(name, TRUNK, name, _stage(model, name), features))
        features = jax.eval_shape(found[-1].function, variables, features)

    def propose(module, x):
        return dict(zip(('scores', 'deltas'), module.rpn(x), strict=True))

    def classify(module, x):
        scores, deltas = module.box(x[:, None])
        return {'scores': scores[:, 0], 'deltas': deltas[:, 0]}

    found.append(Part('rpn', PROPOSALS, 'rpn', _method(model, propose), features))
    regions = s.roi_batch, s.rpn_post_nms[1]
    bins = -(-s.roi_size // (2 if model.skips_bins else 1))
    pooled = jax.ShapeDtypeStruct((1, bins, bins, features.shape[-1]), features.dtype)
    found.append(Part(last, REGION, last, _stage(model, last), pooled,
                      tuple(number + s.context for number in regions)))  # the whole image
    maps = jax.eval_shape(found[-1].function, variables, pooled)
    mean = jax.eval_shape(average, maps)
    width = mean.shape[-1] * (2 if s.context else 1)
    found.append(Part('box', REGION, 'box', _method(model, classify),
                      jax.ShapeDtypeStruct((1, width), mean.dtype), regions))
    if s.masks:
        found.append(Part(f'mask/{last}', DETECTION, last, _stage(model, last), pooled,
                          (0, s.detections)))
        found.append(Part('mask', MASK, 'mask', _method(model, lambda module, x: module.mask(x)),
                          maps, (most_positive(s), s.detections)))
    return found


def _stage(model: FasterRCNN, name: str) -> Callable[[Any, Any], Any]:
    return _method(model, lambda module, x: module.run(
        name, x.astype(module.dtype), train=False))


def _method(model: FasterRCNN, function: Callable[[FasterRCNN, Any], Any],
            ) -> Callable[[Any, Any], Any]:
    return lambda variables, x: model.apply(variables, x, method=function)
