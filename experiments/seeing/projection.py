"""Two-dimensional projections of the same images after every step of a network.

Principal components, rotated to match the previous step as closely as possible (orthogonal
Procrustes), and UMAP (L. McInnes et al., 2018), initialised from the previous step.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments.seeing import geometry
from experiments.seeing.representation import Representation

COMPONENTS = 50  # that UMAP sees; the rest of the variance is noise to it
NEIGHBOURS = 15  # UMAP's default
EPOCHS = 200
DISTANCE = 0.5  # between neighbours, so that the points of a class can be seen singly
SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    """Points of N images in T steps, scaled to a root mean square distance of 1 from the centre.

    Attributes:
      pca: float64 [T, N, 2].
      umap: float64 [T, N, 2].
      variance: the share of the variance that the two principal components hold, [T].
    """

    pca: np.ndarray
    umap: np.ndarray
    variance: np.ndarray


def compute(network: Representation,
            progress: Callable[[], object] = lambda: None) -> Projections:
    """Projects the images after every step.

    Args:
      network: at least 4 images.
      progress: called after every step.
    """
    pca, umap, variance = [], [], []
    for k in network.grams:
        points, shares = geometry.principal(k, 2)
        variance.append(shares.sum())
        points = geometry.unit(points)
        pca.append(geometry.aligned(points, pca[-1]) if pca else points)
        start = umap[-1] if umap else pca[0]
        points = geometry.unit(_umap(geometry.principal(k, COMPONENTS)[0], start))
        umap.append(geometry.aligned(points, start))
        progress()
    return Projections(np.stack(pca), np.stack(umap), np.array(variance))


def _umap(features: np.ndarray, start: np.ndarray) -> np.ndarray:
    """[N, D] -> [N, 2], from points [N, 2] of the step before; always the same."""
    import warnings

    from threadpoolctl import threadpool_limits
    from umap import UMAP

    with warnings.catch_warnings(), threadpool_limits(1):
        # It says that a seed keeps it to one thread, which is what a seed is for.
        warnings.filterwarnings('ignore', message='n_jobs value')
        return UMAP(
            n_neighbors=min(NEIGHBOURS, len(features) - 1), min_dist=DISTANCE, n_epochs=EPOCHS,
            init=10 * start.astype(np.float32), random_state=SEED).fit_transform(features)
