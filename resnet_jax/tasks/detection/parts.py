"""The parts of a detector, which run once per image or once per region; for its cost."""

from collections.abc import Callable
from typing import Any

import jax

from resnet_jax.models.backbone import average
from resnet_jax.models.c4 import FasterRCNNC4
from resnet_jax.models.rcnn import FasterRCNN
from resnet_jax.tasks.detection.losses import most_positive
from resnet_jax.tasks.task import Part

TRUNK, PROPOSALS, REGION = 'trunk', 'proposals', 'region'
MASK, DETECTION = 'mask', 'detection'  # masks of detections need the last stage again


def parts(model: FasterRCNN, variables: Any, images: jax.ShapeDtypeStruct) -> list[Part]:
    """See `Task.parts`. Matching, suppression and RoIAlign are not among them."""
    shared = model.stages[:-1] if isinstance(model, FasterRCNNC4) else model.stages
    found, features, maps = [], images, []
    for name in shared:
        found.append(Part(name, TRUNK, name, _stage(model, name), features))
        features = _output(found[-1], variables)
        maps.append(features)
    if not isinstance(model, FasterRCNNC4):
        found.append(Part('neck', TRUNK, 'neck', _method(
            model, lambda module, maps: module.neck(maps)), maps[1:]))
        features = _output(found[-1], variables)

    def propose(module, x):
        return dict(zip(('scores', 'deltas'), module.rpn(x), strict=True))

    found.append(Part('rpn', PROPOSALS, 'rpn', _method(model, propose), features))
    return found + _of_region(model, variables, jax.tree.leaves(features)[0])


def _of_region(model: FasterRCNN, variables: Any, features: jax.ShapeDtypeStruct) -> list[Part]:
    """The parts that run for every region, for features of the trunk."""
    s = model.settings
    c4 = isinstance(model, FasterRCNNC4)
    last = model.stages[-1] if c4 else 'hidden'
    regions = s.rounds * s.roi_batch, s.rounds * s.rpn_post_nms[1]
    bins = -(-s.roi_size // (2 if c4 and model.skips_bins else 1))
    pooled = jax.ShapeDtypeStruct((1, bins, bins, features.shape[-1]), features.dtype)
    describe = _stage(model, last) if c4 else _method(
        model, lambda module, x: module.hidden(x[:, None])[:, 0])
    whole = s.rounds * s.context  # the whole image is one more
    part = Part(last, REGION, last, describe, pooled, (regions[0] + whole, regions[1] + whole))
    output = _output(part, variables)
    described = jax.eval_shape(average, output) if c4 else output

    def classify(module, x):
        scores, deltas = module.box(x[:, None])
        return {'scores': scores[:, 0], 'deltas': deltas[:, 0]}

    width = described.shape[-1] * (2 if s.context else 1) * (2 if s.cascade else 1)
    found = [part, Part('box', REGION, 'box', _method(model, classify),
                        jax.ShapeDtypeStruct((1, width), described.dtype), regions)]
    if s.masks:
        if c4:
            found.append(part._replace(name=f'mask/{last}', group=DETECTION,
                                       runs=(0, s.detections)))
        side, channels = model.mask_size // 2, (output if c4 else pooled).shape[-1]
        found.append(Part('mask', MASK, 'mask', _method(model, lambda module, x: module.mask(x)),
                          jax.ShapeDtypeStruct((1, side, side, channels), features.dtype),
                          (part.runs[0], part.runs[1] + s.detections) if s.cascade
                          else (most_positive(s), s.detections)))
    return found


def _output(part: Part, variables: Any) -> Any:
    return jax.eval_shape(part.function, variables, part.inputs)


def _stage(model: FasterRCNN, name: str) -> Callable[[Any, Any], Any]:
    return _method(model, lambda module, x: module.run(
        name, x.astype(module.dtype), train=False))


def _method(model: FasterRCNN, function: Callable[[FasterRCNN, Any], Any],
            ) -> Callable[[Any, Any], Any]:
    return lambda variables, x: model.apply(variables, x, method=function)
