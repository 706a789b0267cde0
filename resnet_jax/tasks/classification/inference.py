"""Predicts every image of a split, averaging views and networks, on any mesh."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.sizes import pair
from resnet_jax.data.skips import Skips
from resnet_jax.data.types import Source
from resnet_jax.data.views import Views
from resnet_jax.errors import UserError
from resnet_jax.models import ConfigError
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import outputs

WINDOW = 128  # images that are decoded ahead of the devices


class Predictions(NamedTuple):
    """The predictions of networks for a split.

    Attributes:
      log_probabilities: of the averaged softmax outputs, float32 [N, classes].
      labels: int32 [N].
      skipped: images that could not be decoded; they are not among the N.
    """

    log_probabilities: np.ndarray
    labels: np.ndarray
    skipped: int


def predict(networks: Sequence[Classifier], source: Source, views: Views, batch_size: int, *,
            skip_unreadable: bool = False, devices: Sequence[jax.Device] | None = None,
            ) -> Predictions:
    """Runs networks over all images of a split and averages their softmax outputs.

    Views of one shape wait for one another, so that every batch is full; only the last of each
    shape is padded, and the padding is cut off again. Each process takes every n-th image.

    Args:
      networks: with the same number of classes.
      source: every one of its images counts exactly once.
      views: see `resnet_jax.data.views`.
      batch_size: crops of `views.size` that are computed at once; fewer of larger views.
      skip_unreadable: leave out images that cannot be decoded, with a warning, instead of an error.
      devices: of this process, that share each batch; none: all.

    Raises:
      UserError: an image cannot be decoded, or is too small or too grey for a network.
    """
    classes = networks[0].config.model.num_classes
    mesh = jax.make_mesh((len(devices or jax.local_devices()),), ('data',),
                         devices=devices or jax.local_devices(),
                         axis_types=(jax.sharding.AxisType.Auto,))
    runs = [_Run(network, mesh) for network in networks]
    mine = range(jax.process_index(), len(source), jax.process_count())
    total = np.full((len(mine), classes), -np.inf, np.float32)
    labels = np.empty(len(mine), np.int32)
    counts = np.zeros(len(mine), np.int32)

    def add(results: Iterable[tuple[np.ndarray, jax.Array]]) -> None:
        for rows, result in results:
            total[rows] = np.logaddexp(total[rows], np.asarray(result)[:len(rows)])
            counts[rows] += 1

    pending: list[tuple[np.ndarray, jax.Array]] = []
    for rows, images in _batches(source, mine, views, labels, batch_size, mesh.size,
                                 skip_unreadable):
        new = [(rows, run(images)) for run in runs]
        # One batch behind, so that the host decodes while the devices compute.
        add(pending)
        pending = new
    add(pending)
    good = counts > 0
    total = total[good] - np.log(counts[good])[:, None].astype(np.float32)
    total, labels = _from_all_processes(total, labels[good])
    if not len(labels):
        raise UserError('there are no images to evaluate on.')
    return Predictions(total, labels, len(source) - len(labels))


class _Run:
    """A network, compiled for every shape of views that comes, its weights on every device."""

    def __init__(self, network: Classifier, mesh: Mesh):
        weights = dict(network.variables), dict(network.normalization)
        self._weights = jax.device_put(weights, NamedSharding(mesh, P()))
        self._by_image = NamedSharding(mesh, P('data'))
        self._function = jax.jit(functools.partial(_log_mean_probabilities, network.model))

    def __call__(self, images: np.ndarray) -> jax.Array:
        try:
            return self._function(self._weights, jax.device_put(images, self._by_image))
        except ConfigError as error:
            raise UserError(f'a network cannot take images of {images.shape[2]} x '
                            f'{images.shape[3]} pixels: {error}') from error


def _log_mean_probabilities(model, weights, images) -> jax.Array:
    """Logarithm of the mean softmax output over the views: [n, V, H, W, C] -> [n, classes]."""
    scores = outputs(model, weights, images.reshape(-1, *images.shape[2:]))
    by_view = jax.nn.log_softmax(scores).reshape(*images.shape[:2], -1)
    return jax.nn.logsumexp(by_view, 1) - jnp.log(jnp.float32(images.shape[1]))


def _batches(source, indices, views, labels, batch_size, num_devices, skip_unreadable,
             ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, uint8 [n, V, H, W, C]), n always the same for one shape; notes the labels on the way.

    The last batch of a shape has fewer rows than images. A shape of few images has small batches.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    skips = Skips()
    compiled = set()  # shapes of which there has been a full batch

    def size_of(shape):
        share = batch_size * math.prod(pair(views.size)) // int(np.prod(shape[:3]))
        return max(1, share // num_devices) * num_devices

    def load(row):
        item = source[indices[row]]
        labels[row] = item.target['label']
        try:
            return row, views(item)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            skips.add(str(error))
            return row, []

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), WINDOW):
            rows = range(start, min(start + WINDOW, len(indices)))
            for row, groups in pool.map(load, rows):
                for group in groups:
                    queue = waiting.setdefault(group.shape, [])
                    queue.append((row, group))
                    if len(queue) == size_of(group.shape):
                        compiled.add(group.shape)
                        yield _stack(waiting.pop(group.shape), len(queue))
    for shape, queue in waiting.items():
        few = -(-(1 << (len(queue) - 1).bit_length()) // num_devices) * num_devices
        full = size_of(shape)
        yield _stack(queue, full if shape in compiled else min(few, full))


def _stack(queue: list[tuple[int, np.ndarray]], size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, groups = zip(*queue, strict=True)
    padding = (groups[-1],) * (size - len(groups))
    return np.array(rows), np.stack(groups + padding)


def _from_all_processes(total: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all processes, in every process."""
    if jax.process_count() == 1:
        return total, labels
    counts = multihost_utils.process_allgather(np.int32(len(labels)))
    missing = int(counts.max()) - len(labels)
    gathered = multihost_utils.process_allgather(
        (np.pad(total, ((0, missing), (0, 0))), np.pad(labels, (0, missing))))
    total, labels = (
        np.concatenate([rows[:count] for rows, count in zip(array, counts, strict=True)])
        for array in gathered)
    return total, labels
