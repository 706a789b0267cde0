"""Average precision from the outputs of an evaluation, by the metric that the config names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.masks import restore
from resnet_jax.tasks.detection.paste import in_threads, paste_all
from resnet_jax.tasks.detection.truth import Found, Objects

SHOWN = {'loss': 'loss', 'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75', 'mask_ap': 'mask AP',
         'mask_ap50': 'mask AP50', 'mask_ap75': 'mask AP75'}


def of_outputs(outputs: Mapping[str, np.ndarray]) -> tuple[list[Objects], list[Found]]:
    """The objects and the detections of each image.

    Masks of objects come from crops, which are exact for boxes with whole corners of at most 112 x
    112 pixels; those that `evaluate` reads are always exact.

    Args:
      outputs: those of `resnet_jax.tasks.detection.task.evaluate`, of all images.
    """
    def of_image(row: int) -> tuple[Objects, Found]:
        present, valid = outputs['present'][row], outputs['found'][row]
        truth = Objects(*(outputs[name][row][present]
                          for name in ('boxes', 'classes', 'ignore', 'areas')))
        found = Found(*(outputs[name][row][valid] for name in (
            'found_boxes', 'found_classes', 'found_scores')))
        if 'masks' not in outputs:
            return truth, found
        size = outputs['original'][row]
        crops = np.unpackbits(outputs['masks'][row][present], axis=-1)
        return (truth._replace(masks=[restore(crop, box, *map(int, size)) for crop, box in zip(
                    crops, truth.boxes, strict=True)]),
                found._replace(masks=paste_all(
                    outputs['found_masks'][row][valid], found.boxes, size)))

    pairs = in_threads(of_image, range(len(outputs['id'])))
    return [truth for truth, _ in pairs], [found for _, found in pairs]


def average_precision(truth: Sequence[Objects], found: Sequence[Found],
                      config: ConfigDict) -> dict[str, Any]:
    """Average precision in percent, by `config.eval.metric`.

    Args:
      truth: the objects of each image.
      found: the detections of each image.
      config: the fields `eval.metric`, `eval.object_areas` and `model.num_classes` are read.

    Returns:
      Of 'coco' the twelve numbers of `coco_ap`, and if there are masks, the same of these, whose
      names begin with 'mask_'; of 'voc07' and 'voc12' 'ap', which is AP50. And
      'class_ap', a list, NaN for classes without objects.
    """
    metric, classes = config.eval.metric, config.model.num_classes
    if metric == 'coco':
        from resnet_jax.tasks.detection.coco_ap import coco_ap

        areas = tuple(config.eval.object_areas)
        values = coco_ap(truth, found, classes, areas)
        if any(x.masks is None for x in truth) or any(x.masks is None for x in found):
            return values
        of_masks = coco_ap(truth, found, classes, areas, of_masks=True)
        return values | {f'mask_{name}': value for name, value in of_masks.items()}
    from resnet_jax.tasks.detection.voc_ap import voc_ap

    values = voc_ap(truth, found, classes, metric)
    return {'ap': values['ap50'], **values}


def line(values: Mapping[str, float]) -> str:
    """Formats values, as in 'AP 61.52  AP50 91.30  AP75 70.11'."""
    return '  '.join(f'{text} {values[name]:.4f}' if name == 'loss' else
                     f'{text} {values[name]:.2f}'
                     for name, text in SHOWN.items() if name in values)
