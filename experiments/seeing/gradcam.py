"""Grad-CAM: where in an image the evidence for a class is, at the resolution of a feature map.

R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", 2017.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.seeing import deletion, pictures
from experiments.seeing.activations import intervene, looped, on_device
from experiments.seeing.section import Picture, Section
from resnet_jax.tasks.classification.classifier import Classifier

SHOWN = 10
IMAGES = 64  # of which the curves are the mean
STAGES = 2  # the last ones


def grad_cam(model: nn.Module, weights: tuple[Any, Any], images: np.ndarray, classes: np.ndarray,
             stage: str) -> np.ndarray:
    """Maps of the evidence for a class: equations 1 and 2.

    The gradient of the class's score with respect to the feature maps behind a stage is averaged
    over the positions; with these weights the maps are summed, and what is negative is cut off.
    Behind the last stage of a residual network, whose head is linear in the mean of the maps, this
    is the class activation map of B. Zhou et al., 2016.

    Args:
      model: a network with a head.
      weights: (variables, normalisation).
      images: uint8, or float in units of the full range, [N, H, W, C].
      classes: int [N].
      stage: 'stem', 'stage1', ….

    Returns:
      float32 [N, h, w], at least 0, in units of the score.
    """
    return np.asarray(_grad_cam(model, weights, images, jnp.asarray(classes, jnp.int32), stage))


@functools.partial(jax.jit, static_argnames=('model', 'stage'))
def _grad_cam(model, weights, images, classes, stage):
    shape = jax.eval_shape(lambda: intervene(model, weights, images, stage)[1])

    def score(difference):
        scores, features = intervene(model, weights, images, stage, lambda x: x + difference)
        return jnp.take_along_axis(scores, classes[:, None], 1).sum(), features

    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    importance = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
    return jax.nn.relu((importance * features.astype(jnp.float32)).sum(-1))


def section(network: Classifier, images: np.ndarray, labels: np.ndarray) -> Section:
    """Maps for the predicted classes of some images, and what the pixels they name are worth.

    Args:
      network: a trained network.
      images, labels: of the test split, uint8 [N, H, W, C] and int [N].
    """
    shown = pictures.one_of_each(labels, SHOWN)
    chosen = np.concatenate([shown, np.setdiff1d(np.arange(len(images)), shown)])[:IMAGES]
    images, labels = images[chosen], labels[chosen]
    predicted = network.predict(images).argmax(1)
    stages = [stage for stage in network.stages if stage.startswith('stage')][-STAGES:]
    model, weights = looped(network.model), on_device(network)
    maps = {stage: grad_cam(model, weights, images, predicted, stage) for stage in stages}
    side = images.shape[1:3]
    curves = deletion.compare(network, images, predicted, {
        stage: pictures.resized(found, *side) for stage, found in maps.items()})
    sizes = ', '.join(f'{found.shape[1]} x {found.shape[2]} positions behind {stage}'
                      for stage, found in maps.items())
    tiles = [pictures.enlarged(pictures.to_rgb(images[:len(shown)]))]
    tiles += [pictures.overlaid(images[:len(shown)], found[:len(shown)]) for found in maps.values()]
    drops = {f'gradcam_probability_without_fifth_{name.replace(" ", "_")}':
             float(curve[deletion.SHARES.index(deletion.TOLD)]) for name, curve in curves.items()}
    return Section(
        title='Where the evidence lies: Grad-CAM',
        caption=f'The evidence for the class that the network predicts. A map is no finer than the '
                f'features it is made of: {sizes}, spread over {side[0]} x {side[1]} '
                f'pixels.\n\n{deletion.told(curves)} These are means over {len(images)} test '
                f'images, of which {int((predicted == labels).sum())} are classified correctly.',
        reference='R. Selvaraju et al., Grad-CAM, 2017; deletion: V. Petsiuk et al., RISE, 2018',
        charts={'gradcam_deletion': deletion.chart(curves)},
        descriptions={'gradcam_deletion': 'Mean probability of the predicted class against the '
                                          f'share of pixels removed. {deletion.told(curves)}'},
        pictures={'gradcam_maps': Picture(
            pictures.mosaic(np.concatenate(tiles), len(shown)),
            alt=f'{len(shown)} test images in the upper row; under each, heat maps for '
                f'{" and ".join(stages)}, brightest where the evidence is strongest.',
            caption=pictures.predictions(network.classes, predicted[:len(shown)],
                                         labels[:len(shown)]))},
        numbers=drops, tables={'gradcam_deletion': deletion.table(curves)})
