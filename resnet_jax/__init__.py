"""Deep Residual Learning for Image Recognition (He et al., CVPR 2016) in JAX and Flax."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    import os

    from resnet_jax.tasks.classification.classifier import Classifier

__version__ = '0.1.0'
__all__ = ['__version__', 'load']


def load(path: str | os.PathLike) -> Classifier:
    """A trained network, from a run's workdir or from converted weights.

    >>> network = resnet_jax.load(workdir)
    >>> images = np.zeros((2, 32, 32, 3), np.uint8)
    >>> network.predict(images).shape  # probabilities
    (2, 10)
    >>> network.predict(images[0]).sum().round(4)
    np.float32(1.0)
    >>> network.features(images, stage='stage2').shape
    (2, 16, 16, 16)
    >>> network.features(images).shape  # what the last layer sees
    (2, 32)
    >>> sorted(network.variables)
    ['batch_stats', 'params']

    Args:
      path: a workdir, of which the newest checkpoint is taken; one of its checkpoints,
        `workdir/checkpoints/<step>`; or a folder that `resnet_jax.convert` wrote.

    Returns:
      See `resnet_jax.tasks.classification.classifier.Classifier`.

    Raises:
      resnet_jax.errors.UserError: there is no checkpoint, or it is damaged.
    """
    from resnet_jax.tasks.classification import (
        classifier,  # JAX is imported only when it is needed
    )

    return classifier.load(path)
