"""What there is to say of the objects of a dataset: counts, sizes, and boxes that are mistakes."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.data.boxes import MOST_OUTSIDE
from resnet_jax.data.types import Source, Tree

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
SIDES = ('width', 'height')


class ObjectReport:
    """Collects the objects of a split, image by image."""

    def __init__(self, source: Source):
        """Starts with the boxes that the source left out and describes, if there are any."""
        classes = source.num_classes
        self._names = list(getattr(source, 'class_names', ())) or [str(i) for i in range(classes)]
        self._counts = {name: np.zeros(classes, int) for name in ('objects', 'ignored', 'images')}
        self._sides: list[np.ndarray] = []
        self._images, self._without, self._most = 0, 0, 0
        self._outside = list(getattr(source, 'outside', ()))
        self._empty = list(getattr(source, 'empty', ()))
        self._duplicated: list[str] = []

    def add(self, target: Tree, size: tuple[int, int], name: str) -> None:
        """Counts the objects of an image.

        Args:
          target: see `resnet_jax.data.objects`.
          size: (height, width) of the image.
          name: of the image.
        """
        boxes, labels = np.asarray(target['boxes'], float).reshape(-1, 4), target['classes']
        self._images += 1
        self._without += not len(boxes)
        self._most = max(self._most, len(boxes))
        np.add.at(self._counts['objects'], labels, 1)
        np.add.at(self._counts['ignored'], labels[np.asarray(target['ignore'], bool)], 1)
        self._counts['images'][np.unique(labels)] += 1
        self._sides.append(boxes[:, 2:] - boxes[:, :2])

        def describe(i: int) -> str:
            corners = ', '.join(f'{x:g}' for x in boxes[i])
            return f'{name}: object {i + 1} ({self._names[labels[i]]}; {corners})'

        limits = np.array([size[1], size[0]] * 2)
        inside = ((boxes >= -MOST_OUTSIDE) & (boxes <= limits + MOST_OUTSIDE)).all(1)
        area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        self._outside += [describe(i) for i in np.flatnonzero(~inside)]
        self._empty += [describe(i) for i in np.flatnonzero(inside & ~area)]
        same = collections.defaultdict(list)
        for i, (label, box) in enumerate(zip(labels.tolist(), boxes.tolist(), strict=True)):
            same[label, *box].append(i)
        self._duplicated += [f'{describe(group[0])}, {len(group)} times'
                             for group in same.values() if len(group) > 1]

    def report(self) -> dict[str, Any]:
        """Counts of objects, in all and by class, sides of boxes in pixels, and mistakes.

        Returns:
          'objects', 'ignored' (crowds, or difficult), 'most_objects' in an image,
          'images_without_objects'; 'objects_per_class': {name: {'objects', 'ignored', 'images'}};
          'box_width', 'box_height': {'0%': least, …, '100%': most}; 'outside', 'no_area' and
          'duplicated' (of one class and place in one image): descriptions.
        """
        sides = np.concatenate(self._sides) if self._sides else np.zeros((0, 2))
        found = {
            'objects': int(self._counts['objects'].sum()),
            'ignored': int(self._counts['ignored'].sum()), 'most_objects': self._most,
            'images_without_objects': self._without,
            'objects_per_class': {
                name: {kind: int(counts[i]) for kind, counts in self._counts.items()}
                for i, name in enumerate(self._names)}}
        for side, values in zip(SIDES, sides.T, strict=True):
            if len(values):
                found[f'box_{side}'] = {f'{p}%': round(float(x), 1) for p, x in zip(
                    PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
        return found | {'outside': self._outside, 'no_area': self._empty,
                        'duplicated': self._duplicated}


def class_table(per_class: dict[str, dict[str, int]]) -> Sequence[str]:
    """The lines of a table with a row for each class."""
    head = ['class', *next(iter(per_class.values()))]
    rows = [head, *([name, *(f'{x:,}' for x in counts.values())]
                    for name, counts in per_class.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join([row[0].ljust(widths[0]),
                       *(x.rjust(width) for x, width in zip(row[1:], widths[1:], strict=True))])
            for row in rows]
