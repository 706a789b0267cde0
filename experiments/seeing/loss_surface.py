"""The loss on a plane through the minimum that training found.

H. Li, Z. Xu, G. Taylor, C. Studer and T. Goldstein, "Visualizing the Loss Landscape of Neural
Nets", 2018.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import altair as alt
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.seeing.activations import looped, on_device
from experiments.seeing.lines import lines
from experiments.seeing.section import Section
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.classification.metrics import cross_entropy
from resnet_jax.tasks.network import outputs

POINTS = 21  # per side, odd: the middle one is the network
RADIUS = 1.0  # of the slice, in filters' norms
IMAGES = 256  # of the training split
LOW = 1.0  # a loss below which the network is still of use
LEVELS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # between the colours of the maps


class Surface(NamedTuple):
    """The loss on a plane through a network.

    Attributes:
      positions: along both directions, in filters' norms, float32 [points].
      loss: mean cross-entropy, float32 [points, points]; the first axis is the first direction's.
      error: top-1 error in percent, of the same shape.
    """

    positions: np.ndarray
    loss: np.ndarray
    error: np.ndarray


def filter_normalized(key: jax.Array, params: Any) -> Any:
    """A random direction, each of whose filters is as long as the network's own (section 4).

    The filter of a convolution is all that makes one output channel, and so is the column of a
    dense layer. Biases and the parameters of batch normalisation do not move, as in the authors'
    experiments.

    Args:
      key: of the direction.
      params: parameters of a network, stacked blocks included.

    Returns:
      A tree like the parameters.
    """
    # One draw for all: with one for each leaf, ResNet-20 took 14 s to compile instead of 4 s.
    flat, unravel = ravel_pytree(params)
    noise = unravel(jax.random.normal(key, flat.shape, flat.dtype))

    def direction(path, leaf, noise):
        if path[-1].key != 'kernel':
            return jnp.zeros_like(leaf)
        axes = (-2,) if leaf.ndim == 2 else (-4, -3, -2)  # all but the filters, and the blocks

        def norm(x):
            return jnp.sqrt(jnp.square(x).sum(axes, keepdims=True))

        return noise * (norm(leaf) / norm(noise))

    return jax.tree.map_with_path(direction, params, noise)


def loss_surface(model: nn.Module, weights: tuple[Any, Any], images: np.ndarray,
                 labels: np.ndarray, key: jax.Array, *, points: int = POINTS,
                 radius: float = RADIUS) -> Surface:
    """The loss on the plane of two random directions, in one compiled program.

    Batch normalisation keeps the running statistics of the network in the middle, as in
    evaluation. Networks with the same tree of parameters, as a residual one and its plain twin with
    option A, move along the same random numbers for the same key.

    Args:
      model: a network with a head.
      weights: (variables, normalisation).
      images: uint8 [N, H, W, C].
      labels: int [N].
      key: of the directions.
      points: per side, odd.
      radius: of the slice; at 1 a filter has moved by its own length.

    Raises:
      ValueError: the number of points is even, and none of them is the network.
    """
    if points % 2 == 0:
        raise ValueError(f'points must be odd, got {points}.')
    positions = np.linspace(-radius, radius, points).astype(np.float32)
    loss, error = _surface(model, weights, images, jnp.asarray(labels, jnp.int32), key, positions)
    return Surface(positions, *(np.asarray(x) for x in (loss, error)))


@functools.partial(jax.jit, static_argnames='model')
def _surface(model, weights, images, labels, key, positions):
    variables, normalization = weights
    first, second = (filter_normalized(k, variables['params']) for k in jax.random.split(key))

    def at(point):
        params = jax.tree.map(lambda p, a, b: p + point[0] * a + point[1] * b,
                              variables['params'], first, second)
        scores = outputs(model, ({**variables, 'params': params}, normalization), images)
        wrong = scores.argmax(-1) != labels
        return cross_entropy(scores, labels, 0.0).mean(), 100 * wrong.mean()

    grid = jnp.stack(jnp.meshgrid(positions, positions, indexing='ij'), -1)
    # One point after the other: side by side, every image would have convolutions of its own.
    loss, error = jax.lax.map(at, grid.reshape(-1, 2))
    return loss.reshape(grid.shape[:2]), error.reshape(grid.shape[:2])


def local_minima(loss: np.ndarray) -> int:
    """Points inside the slice that are lower than their eight neighbours; a bowl has one."""
    inner = loss[1:-1, 1:-1]
    rows, columns = loss.shape
    neighbours = [loss[1 + i:rows - 1 + i, 1 + j:columns - 1 + j]
                  for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    return int(np.all([inner < other for other in neighbours], 0).sum())


def section(networks: Mapping[str, Classifier], images: np.ndarray, labels: np.ndarray, *,
            seed: int = 0, points: int = POINTS, radius: float = RADIUS) -> Section:
    """The slices of some networks side by side, under one scale.

    Args:
      networks: by name, such as 'residual' and 'plain'.
      images, labels: of the training split, uint8 [N, H, W, C] and int [N]; the first 256 are used.
      seed: of the directions.
      points, radius: see `loss_surface`.
    """
    images, labels = images[:IMAGES], labels[:IMAGES]
    found = {name: loss_surface(looped(network.model), on_device(network), images, labels,
                                jax.random.key(seed), points=points, radius=radius)
             for name, network in networks.items()}
    middle = points // 2
    numbers, told, rows = {}, [], []
    for name, surface in found.items():
        values = {
            'centre': float(surface.loss[middle, middle]),
            'low_share': float((surface.loss < LOW).mean()),
            'median': float(np.median(surface.loss)),
            'highest': float(surface.loss.max()),
            'local_minima': local_minima(surface.loss),
        }
        numbers |= {f'loss_surface_{name}_{what}': value for what, value in values.items()}
        rows.append([name, *(round(value, 4) for value in values.values())])
        told.append(
            f'{name}: {values["centre"]:.4f} in the middle, below {LOW:.0f} on '
            f'{100 * values["low_share"]:.0f} % of the slice, with a median of '
            f'{values["median"]:.2f} and a maximum of {values["highest"]:,.1f}; '
            f'{values["local_minima"]} local '
            f'{"minimum" if values["local_minima"] == 1 else "minima"}')
    chance = math.log(next(iter(networks.values())).config.model.num_classes)
    summary = f'Loss of {". ".join(told)}.'
    caption = (
        f'The loss over {len(images)} training images on a plane through the trained network, '
        f'along two random directions that move every filter by up to {radius:g} times its own '
        f'length; {points} x {points} points, with the network itself in the middle. '
        f'{summary} Uniform guessing has a loss of {chance:.2f}.')
    return Section(
        title='The loss around the minimum', caption=caption,
        reference='H. Li et al., Visualizing the Loss Landscape of Neural Nets, 2018',
        charts={'loss_surface': _maps(found), 'loss_profile': _profile(found)},
        descriptions={
            'loss_surface': f'Maps of the loss, one for each network, side by side. {summary}',
            'loss_profile': f'The loss along the first direction, one line per network. {summary}'},
        numbers=numbers,
        tables={'loss_surface': (['network', 'loss in the middle', f'share below {LOW:.0f}',
                                  'median', 'highest', 'local minima'], rows)})


def _maps(found: Mapping[str, Surface]) -> alt.TopLevelMixin:
    bands = [f'below {LEVELS[0]:g}', *(f'{low:g} to {high:g}' for low, high in itertools.pairwise(
        LEVELS)), f'above {LEVELS[-1]:g}']
    rows = [{'network': name, 'first direction': round(float(x), 3),
             'second direction': round(float(y), 3), 'loss': float(f'{surface.loss[i, j]:.3g}'),
             'band': bands[np.searchsorted(LEVELS, surface.loss[i, j])]}
            for name, surface in found.items() for i, x in enumerate(surface.positions)
            for j, y in enumerate(surface.positions)]
    ticks = [round(float(x), 3) for x in np.quantile(
        next(iter(found.values())).positions, [0, 0.25, 0.5, 0.75, 1], method='nearest')]
    side = 640 // max(2, len(found))
    axis = alt.Axis(values=ticks, labelAngle=0)
    return alt.Chart(alt.Data(values=rows), width=side, height=side).mark_rect().encode(
        x=alt.X('first direction:O', axis=axis),
        y=alt.Y('second direction:O', sort='descending', axis=axis),
        color=alt.Color('band:O', title='loss', sort=bands,
                        scale=alt.Scale(domain=bands, scheme='viridis')),
        column=alt.Column('network:N', sort=list(found), title=None),
        tooltip=['network:N', 'first direction:O', 'second direction:O', 'loss:Q'])


def _profile(found: Mapping[str, Surface]) -> alt.TopLevelMixin:
    first = next(iter(found.values()))
    return lines(
        first.positions, {name: surface.loss[:, len(surface.positions) // 2]
                          for name, surface in found.items()},
        x_title='along the first direction', y_title='loss', series_title='network',
        scale=alt.Scale(type='log'))
