"""Values of the layers of plain and residual networks: their order, and their rows for JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.errors import UserError

Groups = Mapping[tuple[int, bool], Mapping[int, Sequence[float]]]  # (depth, plain): seed: values


def network(config: ConfigDict) -> Any:
    """The `ResNet` of a config, of a family that has residual networks and their plain twins.

    Raises:
      UserError: the config is of another network, or there is none of this depth.
    """
    from resnet_jax import models

    model = config.model.copy_and_resolve_references()
    model.num_classes = model.num_classes or 1  # where the data decides it
    try:
        if config.task == 'classification' and 'plain' in models.family_of(model).architecture:
            return models.create(model)
    except models.ConfigError as error:
        raise UserError(str(error)) from error
    raise UserError('only residual networks that classify have a plain twin to compare with: give '
                    'a --config with task classification and model.family cifar or imagenet.')


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


def name(depth: int, plain: bool) -> str:
    """Of a network, such as 'plain-20' or 'ResNet-20'."""
    return f'{"plain" if plain else "ResNet"}-{depth}'


def by_seed(groups: Groups, key: str) -> list[dict[str, Any]]:
    """'depth', 'plain', 'seed' and, by this key, the values of the layers of each network."""
    return [{'depth': depth, 'plain': plain, 'seed': seed, key: list(values)}
            for (depth, plain), seeds in groups.items() for seed, values in seeds.items()]
