"""Passes images through a network block by block and collects all measurements."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from experiments.seeing import blocks as blocks_lib
from experiments.seeing import geometry, probe
from experiments.seeing.images import Images
from resnet_jax.tasks.classification.classifier import Classifier

PIXELS, STEM = 'pixels', 'stem'  # what the first two steps are called; the others are blocks


@dataclasses.dataclass(frozen=True, eq=False)
class Representation:
    """What a network makes of N held-out images in T steps: the pixels, the stem, L blocks.

    Attributes:
      steps: the names of the T steps.
      labels: int32 [N].
      grams: float64 [T, N, N]; see `geometry.gram`.
      ratio: norm of the branch over the norm of what the block carries, float32 [L, N].
      branch_cosine: between the branch and what the block carries, float32 [L, N].
      output_cosine: between the output and what the block carries, float32 [L, N].
      carried_share: the part of the variance of what a block carries that lies between the classes
        and not within them, from 0 to 1: float64 [L].
      branch_share: the same of the branch.
      probe_map: accuracy of a linear probe of the feature map, in percent: float64 [T].
      probe_mean: of the map's average over all positions, which is what the head sees.
      error: top-1 error on the held-out images, in percent.
    """

    steps: tuple[str, ...]
    labels: np.ndarray
    grams: np.ndarray
    ratio: np.ndarray
    branch_cosine: np.ndarray
    output_cosine: np.ndarray
    carried_share: np.ndarray
    branch_share: np.ndarray
    probe_map: np.ndarray
    probe_mean: np.ndarray
    error: float

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the L blocks."""
        return self.steps[2:]

    @functools.cached_property
    def scatter(self) -> np.ndarray:
        """See `geometry.scatter`: [T]."""
        return np.array([geometry.scatter(k, self.labels) for k in self.grams])

    @functools.cached_property
    def share(self) -> np.ndarray:
        """The part of the variance that lies between the classes, from 0 to 1: [T]."""
        return self.scatter / (1 + self.scatter)

    @functools.cached_property
    def neighbours(self) -> np.ndarray:
        """See `geometry.neighbours`: [T]."""
        return np.array([geometry.neighbours(k, self.labels) for k in self.grams])

    @functools.cached_property
    def cka(self) -> np.ndarray:
        """Between every pair of steps, see `geometry.cka`: [T, T]."""
        k = self.grams.reshape(len(self.grams), -1)
        products = k @ k.T
        norms = np.sqrt(np.diag(products))
        return products / norms / norms[:, None]


def measure(network: Classifier, test: Images, train: Images,
            progress: Callable[[], object] = lambda: None) -> Representation:
    """Runs held-out images through a network; training images too, to fit the probes to.

    Args:
      network: residual, or a plain twin.
      test: the N images that everything is measured on.
      train: the images that the probes are fitted to.
      progress: called after every step.

    Raises:
      UserError: the network has no blocks.
    """
    blocks = blocks_lib.blocks(network)
    grams, probes, passes, shares = [], [], [], []

    def note(x_train, x):
        grams.append(geometry.gram(x))
        probes.append([
            probe.accuracy(view(x_train), train.labels, view(x), test.labels)
            for view in (probe.coarse, lambda maps: maps.mean((1, 2)))])
        progress()

    note(*(images.pixels.astype(np.float32) for images in (train, test)))
    x_train, x = (network.features(images.pixels, 'stem').astype(np.float32)
                  for images in (train, test))
    note(x_train, x)
    for block in blocks:
        x_train = blocks_lib.forward(block, x_train).astype(np.float32)
        made = blocks_lib.in_batches(
            functools.partial(_run, block.module, block.variables), x)
        passes.append(angles(made))
        shares.append([share(part, test.labels) for part in (made.carried, made.branch)])
        x = made.output
        note(x_train, x)
    ratio, branch_cosine, output_cosine = np.stack(passes, 1)
    carried_share, branch_share = np.array(shares).T
    probe_map, probe_mean = np.array(probes).T
    return Representation(
        (PIXELS, STEM, *(block.name for block in blocks)), test.labels, np.stack(grams), ratio,
        branch_cosine, output_cosine, carried_share, branch_share, probe_map, probe_mean,
        blocks_lib.error(network, x, test.labels))


@functools.partial(jax.jit, static_argnums=0)
def _run(module, variables, x):
    return blocks_lib.run(module, variables, x)


def share(features: np.ndarray, labels: np.ndarray) -> float:
    """The part of the variance of features [N, ...] that lies between the classes: 0 to 1."""
    ratio = geometry.scatter(geometry.gram(features), labels)
    return ratio / (1 + ratio)


def angles(made: blocks_lib.Pass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How a block moves each image; see `Representation`.

    Returns:
      Ratio of branch and carried, cosine of branch and carried, cosine of output and carried,
      float32 [N] each.
    """
    carried, branch, output = (part.reshape(len(part), -1) for part in made)
    lengths = [np.maximum(np.linalg.norm(part, axis=1), np.finfo(np.float32).tiny)
               for part in (carried, branch, output)]
    return (lengths[1] / lengths[0],
            (branch * carried).sum(1) / lengths[1] / lengths[0],
            (output * carried).sum(1) / lengths[2] / lengths[0])
