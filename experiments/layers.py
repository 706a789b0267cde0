"""The order of the layers of a network."""

from collections.abc import Mapping

import numpy as np


def in_order(values: Mapping[str, np.ndarray]) -> list[float]:
    """One value per layer, in the order in which an image passes them.

    Args:
      values: by the path of a convolution or of its normalisation, such as 'stage1/block1/norm2';
        scalars, or [blocks] of stacked blocks.
    """
    from resnet_jax.models import STACKED

    layers = {}
    for path, of_layer in values.items():
        part, *block, name = path.split('/')
        stage = int(part.removeprefix('stage')) if block else 0
        number = name.removeprefix('norm').removeprefix('conv')
        after_first = block == [STACKED]
        for i, value in enumerate(np.atleast_1d(of_layer)):
            layers[stage, i + after_first, number] = float(value)
    return [layers[key] for key in sorted(layers)]
