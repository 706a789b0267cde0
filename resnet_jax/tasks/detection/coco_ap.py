"""COCO's average precision and recall."""

from collections.abc import Sequence

import numpy as np

from resnet_jax.tasks.detection.truth import Found, Objects

NAMES = ('ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
         'ar1', 'ar10', 'ar100', 'ar_small', 'ar_medium', 'ar_large')
COCO_AREAS = (32**2, 96**2)
LARGEST_AREA = 1e5**2


def coco_ap(truth: Sequence[Objects], found: Sequence[Found], num_classes: int,
            areas: tuple[float, float] = COCO_AREAS, *,
            of_masks: bool = False) -> dict[str, float | list[float]]:
    """COCO's twelve numbers in percent, computed by faster-coco-eval.

    T.-Y. Lin et al., "Microsoft COCO", 2014, and https://cocodataset.org/#detection-eval. The
    numbers equal those of pycocotools.

    Args:
      truth: the objects of each image; the ignored ones are COCO's crowds.
      found: the detections of the same images; the 100 best of every class count.
      num_classes: classes are numbered from 0 to num_classes - 1.
      areas: square pixels at which objects become medium and large.
      of_masks: compares masks instead of boxes; all objects and detections must have one.

    Returns:
      'ap', the mean over IoUs of 0.5 to 0.95; 'ap50' and 'ap75'; 'ap_small', 'ap_medium' and
      'ap_large'; recalls 'ar1', 'ar10' and 'ar100' by the number of detections per image; and
      'ar_small', 'ar_medium' and 'ar_large'. 'class_ap' has the 'ap' of each class. A number over
      no objects is NaN.

    Raises:
      ValueError: if truth and found have different numbers of images.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # slow to import

    if len(truth) != len(found):
        raise ValueError(f'truth has {len(truth)} images, found has {len(found)}')
    silent = {'print_function': _print_nothing}
    references = COCO({
        'info': {}, 'images': _images(truth, found),
        'categories': [{'id': i, 'name': str(i)} for i in range(num_classes)],
        'annotations': _annotations(truth, of_masks)}, **silent)
    medium, large = areas
    evaluation = COCOeval_faster(
        references, references.loadRes(_detections(found, of_masks)),
        'segm' if of_masks else 'bbox', **silent,
        ranges={'small': [0, medium], 'medium': [medium, large], 'large': [large, LARGEST_AREA]})
    evaluation.run()
    # [IoUs, recalls, classes, area ranges, numbers of detections]; -1 without objects.
    precision = evaluation.eval['precision'][:, :, :, 0, -1]
    class_ap = [_percent(precision[:, :, label].mean()) for label in range(num_classes)]
    return {**dict(zip(NAMES, map(_percent, evaluation.stats), strict=True)), 'class_ap': class_ap}


def _images(truth, found):
    sizes = [next((mask['size'] for mask in (*(objects.masks or ()), *(detections.masks or ()))),
                  (0, 0)) for objects, detections in zip(truth, found, strict=True)]
    return [{'id': i, 'height': size[0], 'width': size[1]} for i, size in enumerate(sizes)]


def _annotations(truth, of_masks):
    shapes = _segmentations(truth, of_masks)
    rows = [(image, *row) for image, objects in enumerate(truth)
            for row in zip(_x_y_width_height(objects.boxes), objects.classes.tolist(),
                           objects.ignore.tolist(), objects.areas.tolist(), strict=True)]
    # The evaluator takes the number 0 for "no object".
    return [{'id': number, 'image_id': image, 'bbox': box, 'category_id': label,
             'iscrowd': int(ignore), 'area': area, **shapes[number - 1]}
            for number, (image, box, label, ignore, area) in enumerate(rows, 1)]


def _detections(found, of_masks):
    rows = [{'image_id': image, 'bbox': box, 'category_id': label, 'score': score}
            for image, detections in enumerate(found)
            for box, label, score in zip(_x_y_width_height(detections.boxes),
                                         detections.classes.tolist(),
                                         detections.scores.tolist(), strict=True)]
    if of_masks:  # from which the evaluator takes the boxes and areas
        rows = [{name: value for name, value in row.items() if name != 'bbox'} for row in rows]
    return [row | shape for row, shape in zip(rows, _segmentations(found, of_masks), strict=True)]


def _segmentations(images, of_masks):
    if not of_masks:
        return [{}] * sum(len(image.boxes) for image in images)
    return [{'segmentation': dict(mask)} for image in images for mask in image.masks or ()]


def _x_y_width_height(boxes) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _percent(fraction) -> float:
    return float(100 * fraction) if fraction > -1 else np.nan


def _print_nothing(*args, **kwargs):
    """Takes the place of the evaluator's print."""
