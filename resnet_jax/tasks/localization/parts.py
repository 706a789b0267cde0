"""The parts of a localizer with an R-CNN, for its cost."""

from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.models import localizer_rcnn as models
from resnet_jax.models.localizer_rcnn import LocalizerRCNN
from resnet_jax.tasks.task import Part

PROPOSALS, REGIONS = 'proposals', 'regions'


def parts(model: LocalizerRCNN, variables: Any, images: jax.ShapeDtypeStruct) -> list[Part]:
    """See `Task.parts`. In a test, the proposals of a single class are judged.

    Warping the regions is not among them.
    """
    settings = model.settings
    found, x = [], jax.eval_shape(lambda x: models.reduced(x, settings.reduction), images)

    def method(function):
        return lambda variables, x: model.apply(variables, x, method=function)

    for stage in model.stages:
        found.append(Part(stage, PROPOSALS, stage, method(
            lambda module, x, stage=stage: module.run(stage, x, train=False)), x))
        x = jax.eval_shape(found[-1].function, variables, x)
    found.append(Part('head', PROPOSALS, 'head', method(lambda module, x: module.classify(x)), x))
    found.append(Part('localizer', PROPOSALS, 'localizer', method(
        lambda module, x: dict(zip(('scores', 'deltas'), module.localizer(x, None),
                                   strict=True))), x))
    crop = jax.ShapeDtypeStruct((1, settings.crop_size, settings.crop_size, images.shape[-1]),
                                jnp.float32)
    runs = (1, settings.proposals)
    found.append(Part('rcnn', REGIONS, 'rcnn', method(
        lambda module, x: module.describe(x, train=False)), crop, runs))
    described = jax.eval_shape(found[-1].function, variables, crop)
    found.append(Part('region', REGIONS, 'region', method(
        lambda module, x: dict(zip(('scores', 'deltas'), module.region(x), strict=True))),
        described, runs))
    return found
