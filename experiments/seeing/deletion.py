"""Tests an explanation by removing the pixels it ranks highest, and random ones.

V. Petsiuk et al., "RISE: Randomized Input Sampling for Explanation", 2018, section 4.2.
"""

import altair as alt
import numpy as np

from experiments.seeing.lines import lines
from resnet_jax.tasks.classification.classifier import Classifier

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
TOLD = 0.2  # the share that captions speak of
RANDOM_ORDERS = 5


def deletion_curve(network: Classifier, images: np.ndarray, classes: np.ndarray,
                   importance: np.ndarray, shares: tuple[float, ...] = SHARES) -> np.ndarray:
    """The mean probability of a class when the most important pixels of every image turn black.

    Args:
      network: a trained network.
      images: uint8 [N, H, W, C].
      classes: the class of each image whose probability is measured, int [N].
      importance: of the pixels, float [N, H, W]; ties fall in the order of the pixels.
      shares: of the pixels that are taken away.

    Returns:
      float32 [shares].
    """
    n, height, width, _ = images.shape
    order = np.argsort(-importance.reshape(n, -1), axis=1, kind='stable')
    rank = np.argsort(order, axis=1).reshape(n, height, width)
    curve = []
    for share in shares:
        kept = rank >= round(share * height * width)
        probabilities = network.predict(images * kept[..., None].astype(np.uint8))
        curve.append(probabilities[np.arange(n), classes].mean())
    return np.array(curve, np.float32)


def compare(network: Classifier, images: np.ndarray, classes: np.ndarray,
            explanations: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """The curves of some explanations, and of pixels in random order, the mean of five orders.

    Args:
      network, images, classes: see `deletion_curve`.
      explanations: name to importance.
      seed: of the random orders.

    Returns:
      Name to curve, the last 'random pixels'.
    """
    rng = np.random.default_rng(seed)
    curves = {name: deletion_curve(network, images, classes, importance)
              for name, importance in explanations.items()}
    curves['random pixels'] = np.mean([
        deletion_curve(network, images, classes, rng.random(images.shape[:3]))
        for _ in range(RANDOM_ORDERS)], 0)
    return curves


def told(curves: dict[str, np.ndarray]) -> str:
    """What the curves show, as a sentence with numbers."""
    at = SHARES.index(TOLD)
    parts = [f'to {curve[at]:.2f} for {name}' for name, curve in curves.items()]
    start = next(iter(curves.values()))[0]
    return (f'Turning a fifth of the pixels black, the most important first, lowers the mean '
            f'probability from {start:.2f} {", ".join(parts[:-1])}, and {parts[-1]}.')


def chart(curves: dict[str, np.ndarray]) -> alt.Chart:
    """The curves as lines."""
    return lines([100 * share for share in SHARES], curves, x_title='pixels removed (%)',
                 y_title='mean probability', series_title='order of the pixels',
                 scale=alt.Scale(domain=[0, 1]))


def table(curves: dict[str, np.ndarray]) -> tuple[list[str], list[list]]:
    """The curves as a table: heads and rows."""
    heads = ['order of the pixels', *(f'{100 * share:.0f} % taken away' for share in SHARES)]
    return heads, [[name, *(round(float(x), 3) for x in curve)] for name, curve in curves.items()]
