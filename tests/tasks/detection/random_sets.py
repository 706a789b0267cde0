"""Random objects, and detections of them: near, far, double, mistaken and with equal scores."""

import numpy as np

from resnet_jax.tasks.detection.truth import Found, Objects


def random_set(seed, num_images=12, num_classes=4, side=320):
    """(truth, found): some images have no objects, others no detections; class 0 has no objects."""
    rng = np.random.default_rng(seed)
    pairs = [_random_image(rng, num_classes, side) for _ in range(num_images)]
    truth, found = map(list, zip(*pairs, strict=True))
    truth[0], found[1] = objects_of([]), found_of([])
    return truth, found


def objects_of(rows):
    """Objects of rows (x1, y1, x2, y2, class, ignore)."""
    rows = np.array(rows, np.float32).reshape(-1, 6)
    boxes = rows[:, :4]
    return Objects(boxes, rows[:, 4].astype(np.int32), rows[:, 5] > 0,
                   (boxes[:, 2:] - boxes[:, :2]).prod(1))


def found_of(rows):
    """Detections of rows (x1, y1, x2, y2, class, score)."""
    rows = np.array(rows, np.float32).reshape(-1, 6)
    rows = rows[np.argsort(-rows[:, 5], kind='stable')]
    return Found(rows[:, :4], rows[:, 4].astype(np.int32), rows[:, 5])


def _random_image(rng, num_classes, side):
    number = rng.integers(0, 9)
    start = rng.integers(0, side // 2, (number, 2))
    boxes = np.concatenate([start, start + rng.integers(4, side // 2, (number, 2))], 1)
    classes = rng.integers(1, num_classes, number)
    objects = objects_of(np.column_stack([boxes, classes, rng.random(number) < 0.25]))
    objects = objects._replace(areas=(objects.areas * 0.7).astype(np.float32))  # a mask's area
    near = np.repeat(np.column_stack([boxes, classes]), rng.integers(0, 4, number), 0)
    near[:, :4] += rng.integers(-3, 4, (len(near), 4))
    near[:, 2:4] = np.maximum(near[:, 2:4], near[:, :2] + 1)
    mistaken = rng.random(len(near)) < 0.15
    near[mistaken, 4] = rng.integers(0, num_classes, mistaken.sum())
    far = rng.integers(0, side // 2, (rng.integers(0, 6), 5))
    far[:, 2:4] += far[:, :2] + 1
    far[:, 4] = rng.integers(0, num_classes, len(far))
    # Multiples of 1/8, so that many are equal.
    scores = np.concatenate([rng.integers(3, 9, len(near)), rng.integers(1, 7, len(far))]) / 8
    rows = np.column_stack([np.concatenate([near, far]), scores])
    return objects, found_of(rng.permutation(rows))
