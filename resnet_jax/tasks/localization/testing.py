"""Tests localizers as in table 13: a single crop of each image, or dense at several scales."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resnet_jax import data
from resnet_jax.data import Item, Source
from resnet_jax.data.crops import Crop, resized
from resnet_jax.data.decode import Region, UnreadableImageError
from resnet_jax.data.sizes import pair
from resnet_jax.data.skips import Skips
from resnet_jax.data.transforms import cut, image_shape, with_channels
from resnet_jax.errors import UserError
from resnet_jax.tasks.localization import baseline, metrics
from resnet_jax.tasks.localization.predictor import Localizer, Prediction, loaded, locate
from resnet_jax.tasks.task import Report

WINDOW = 256  # images that are decoded before the devices compute them
STEP = 32  # pixels; the longer side of a dense view is a multiple, for few shapes to compile for
BATCH_SIZE = 32  # crops for a device
CropOf = Callable[[Item], Crop]


class Tested(NamedTuple):
    """What the metrics need of some images.

    Attributes:
      label: int32 [N].
      classes: int32 [N, 5], the most probable ones first.
      overlap: float32 [N], IoU of the box of the true class with the best true box.
      baseline: float32 [N], the same for the baseline; NaN without one.
    """

    label: np.ndarray
    classes: np.ndarray
    overlap: np.ndarray
    baseline: np.ndarray


def test(networks: Sequence[Localizer], paths: Sequence[str], config: ConfigDict,
         flags: Mapping[str, Any]) -> Report:
    """Evaluates a localizer on the evaluation split; see `Task.test`.

    Of several scales, each class has the box with the highest score, and the probabilities are
    averaged.

    Args:
      networks: one.
      paths: where it comes from, for messages.
      config: whose data is used.
      flags: 'protocol', 'scales' and 'batch_size'; see `evaluate`.

    Raises:
      UserError: there are several networks, the network does not fit the data, or a flag is wrong.
    """
    if len(networks) > 1:
        raise UserError('localizers are evaluated one at a time; give one --checkpoint.')
    network, source = networks[0], data.create_eval_source(config)
    if data.num_classes(source) != network.config.model.num_classes:
        raise UserError(f'{paths[0]} was trained on {network.config.model.num_classes} classes, '
                        f'but the data has {data.num_classes(source)}.')
    sizes = baseline.mean_sizes(data.create_source(config, 'train'))
    tested = run(network, source, _crops(network, flags), flags['batch_size'], sizes,
                 skip_unreadable=config.data.on_unreadable == 'skip')
    if not len(tested.label):
        raise UserError('there are no images to evaluate on.')
    mask = np.ones(len(tested.label), np.float32)
    values = metrics.report(jax.device_get(metrics.sums(
        tested.label, tested.classes, tested.overlap, mask)))
    if sizes is not None:
        values['baseline_error'] = 100 * float((tested.baseline <= metrics.LEAST_IOU).mean())
    return Report({f'eval/{name}': value for name, value in values.items()}, _text(values))


def run(network: Localizer, source: Source, crops: Sequence[CropOf], batch_size: int | None,
        sizes: np.ndarray | None, *, skip_unreadable: bool) -> Tested:
    """Runs a localizer over all images of a split; process p of n takes every n-th from image p.

    Args:
      network: see `Localizer`.
      source: its items have the target 'label' and 'boxes'.
      crops: an image's crop at each scale.
      batch_size: crops of the network's size that this process computes at once; fewer of larger
        ones. None: 32 for each device.
      sizes: see `baseline.mean_sizes`.
      skip_unreadable: leave out images that cannot be decoded, with a warning, instead of an error.

    Returns:
      All images that were read, of all processes.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ('data',), devices=devices,
                         axis_types=(jax.sharding.AxisType.Auto,))
    predict = _on_mesh(network, mesh, batch_size or BATCH_SIZE * mesh.size)
    mine = range(jax.process_index(), len(source), jax.process_count())
    skips, parts = Skips(), []

    def load(index: int) -> tuple[Item, list[dict[str, np.ndarray]]] | None:
        item = source[index]
        try:
            return item, [_view(network, item, crop(item)) for crop in crops]
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            skips.add(str(error))
            return None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(mine), WINDOW):
            read = [one for one in pool.map(load, mine[start:start + WINDOW]) if one is not None]
            if read:
                items = [item for item, _ in read]
                scales = [predict([views[i] for _, views in read]) for i in range(len(crops))]
                parts.append(_compare(items, merged(scales), sizes))
    return _of_all_processes(parts, network.config.model.num_classes)


def merged(scales: Sequence[Prediction]) -> Prediction:
    """The prediction from several scales: mean probabilities, and the boxes with the best score."""
    best = np.argmax([scale.scores for scale in scales], 0)[None]
    boxes, scores = (np.stack([getattr(scale, name) for scale in scales])
                     for name in ('boxes', 'scores'))
    return Prediction(np.mean([scale.probabilities for scale in scales], 0),
                      np.take_along_axis(boxes, best[..., None], 0)[0],
                      np.take_along_axis(scores, best, 0)[0])


def dense(item: Item, shorter: int) -> Crop:
    """The whole image with its shorter side scaled to a length.

    The longer one is rounded to a multiple of 32 pixels, which stretches the image a little.
    Overlaps do not depend on that.
    """
    height, width = image_shape(item)
    rows, columns = (side if side == shorter else max(shorter, round(side / STEP) * STEP)
                     for side in resized(height, width, shorter))
    return Crop(Region(0, 0, height, width, closed=True), (rows, columns))


def _crops(network: Localizer, flags: Mapping[str, Any]) -> list[CropOf]:
    """The crops that the flags select."""
    protocol = flags['protocol'] or 'center_crop'
    if protocol not in ('center_crop', 'multi_scale'):
        raise UserError('--protocol must be center_crop or multi_scale for localizers, got '
                        f'{protocol}.')
    if protocol == 'center_crop':
        return [network.transform.crop]
    least = min(pair(network.transform.size))
    try:
        scales = [int(scale) for scale in flags['scales'] or (least, least * 3 // 2)]
    except ValueError as error:
        raise UserError('--scales must be numbers separated by commas, got '
                        f'{",".join(flags["scales"])}.') from error
    if min(scales) < 1:
        raise UserError(f'--scales must be at least 1, got {min(scales)}.')
    return [functools.partial(dense, shorter=scale) for scale in scales]


def _view(network: Localizer, item: Item, crop: Crop) -> dict[str, np.ndarray]:
    pixels = with_channels(cut(item, crop, reduce=False), network.config.data.channels)
    return {**loaded(item, crop, pixels), 'label': np.asarray(item.target['label'], np.int32)}


def _on_mesh(network: Localizer, mesh: Mesh, batch_size: int) -> Callable[..., Prediction]:
    """A function from views to the predictions for them, in their order."""
    by_image = NamedSharding(mesh, P('data'))
    weights = jax.device_put((dict(network.variables), dict(network.normalization)),
                             NamedSharding(mesh, P()))
    function = jax.jit(functools.partial(locate, network.model))
    pixels = np.prod(network.transform.size)

    def batches(views: Sequence[dict]) -> Iterator[tuple[list[int], Prediction]]:
        for shape in sorted({view['image'].shape for view in views}):
            rows = [row for row, view in enumerate(views) if view['image'].shape == shape]
            share = int(batch_size * pixels // np.prod(shape[:2])) // mesh.size
            size = max(1, share) * mesh.size
            for start in range(0, len(rows), size):
                part = rows[start:start + size]
                padded = [*part, *part[-1:] * (size - len(part))]
                batch = jax.tree.map(lambda *x: np.stack(x), *(views[row] for row in padded))
                found = jax.device_get(function(weights, jax.device_put(batch, by_image)))
                yield part, Prediction(*(array[:len(part)] for array in found))

    def predict(views: Sequence[dict]) -> Prediction:
        order, found = zip(*batches(views), strict=True)
        back = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *x: np.concatenate(x)[back], *found)

    return predict


def _compare(items: Sequence[Item], found: Prediction, sizes: np.ndarray | None) -> Tested:
    labels = np.array([item.target['label'] for item in items], np.int32)
    rows = np.arange(len(items))
    classes = np.argsort(-found.probabilities, 1, kind='stable')[:, :metrics.TOP_K]
    boxes = [np.asarray(item.target['boxes'], np.float32) for item in items]
    overlap = [baseline.best_overlap(box, truth) for box, truth in zip(
        found.boxes[rows, labels], boxes, strict=True)]
    guess = [np.nan if sizes is None else baseline.best_overlap(
        baseline.centred(sizes[label], image_shape(item)), truth)
        for label, item, truth in zip(labels, items, boxes, strict=True)]
    return Tested(labels, classes.astype(np.int32), np.array(overlap, np.float32),
                  np.array(guess, np.float32))


def _of_all_processes(parts: Sequence[Tested], num_classes: int) -> Tested:
    most = min(metrics.TOP_K, num_classes)
    none = Tested(np.zeros(0, np.int32), np.zeros((0, most), np.int32), np.zeros(0, np.float32),
                  np.zeros(0, np.float32))
    mine = jax.tree.map(lambda *x: np.concatenate(x), none, *parts)
    if jax.process_count() == 1:
        return mine
    counts = multihost_utils.process_allgather(np.int32(len(mine.label)))
    missing = int(counts.max()) - len(mine.label)
    padded = jax.tree.map(
        lambda x: np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))), mine)
    gathered = multihost_utils.process_allgather(padded)
    return jax.tree.map(lambda x: np.concatenate(
        [rows[:count] for rows, count in zip(x, counts, strict=True)]), gathered)


def _text(values: Mapping[str, float]) -> str:
    baseline_text = (f'  (centre box {values["baseline_error"]:.2f} %)'
                     if 'baseline_error' in values else '')
    return (f'localization error, true class {values["localization_error"]:.2f} %{baseline_text}  '
            f'top-5 classes {values["top5_localization_error"]:.2f} %  '
            f'mean IoU {values["mean_iou"]:.2f} %  top-1 class error {values["top1_error"]:.2f} %  '
            f'top-5 {values["top5_error"]:.2f} %  on {values["count"]:,} images')
