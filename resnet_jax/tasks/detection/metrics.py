"""Average precision from the outputs of an evaluation, by the metric that the config names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.tasks.detection.truth import Found, Objects

SHOWN = {'loss': 'loss', 'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75'}


def of_outputs(outputs: Mapping[str, np.ndarray]) -> tuple[list[Objects], list[Found]]:
    """The objects and the detections of each image.

    Args:
      outputs: those of `resnet_jax.tasks.detection.task.evaluate`, of all images.
    """
    truth, found = [], []
    for row in range(len(outputs['id'])):
        present, valid = outputs['present'][row], outputs['found'][row]
        truth.append(Objects(*(outputs[name][row][present]
                               for name in ('boxes', 'classes', 'ignore', 'areas'))))
        found.append(Found(*(outputs[name][row][valid] for name in (
            'found_boxes', 'found_classes', 'found_scores'))))
    return truth, found


def average_precision(truth: Sequence[Objects], found: Sequence[Found],
                      config: ConfigDict) -> dict[str, Any]:
    """Average precision in percent, by `config.eval.metric`.

    Args:
      truth: the objects of each image.
      found: the detections of each image.
      config: the fields `eval.metric`, `eval.object_areas` and `model.num_classes` are read.

    Returns:
      Of 'coco' the twelve numbers of `coco_ap`; of 'voc07' and 'voc12' 'ap', which is AP50. And
      'class_ap', a list, NaN for classes without objects.
    """
    metric, classes = config.eval.metric, config.model.num_classes
    if metric == 'coco':
        from resnet_jax.tasks.detection.coco_ap import coco_ap

        return coco_ap(truth, found, classes, tuple(config.eval.object_areas))
    from resnet_jax.tasks.detection.voc_ap import voc_ap

    values = voc_ap(truth, found, classes, metric)
    return {'ap': values['ap50'], **values}


def line(values: Mapping[str, float]) -> str:
    """Formats values, as in 'AP 61.52  AP50 91.30  AP75 70.11'."""
    return '  '.join(f'{text} {values[name]:.4f}' if name == 'loss' else
                     f'{text} {values[name]:.2f}'
                     for name, text in SHOWN.items() if name in values)
