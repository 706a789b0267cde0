"""The paper's test protocols on trained detectors and ensembles of them; see `evaluate`."""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import data
from resnet_jax.data import Source
from resnet_jax.data.objects import Canvas, canvas_of
from resnet_jax.errors import UserError
from resnet_jax.tasks.detection import combined, metrics, results, testing
from resnet_jax.tasks.detection.combined import Plan
from resnet_jax.tasks.detection.curves import count_objects
from resnet_jax.tasks.detection.detector import Detector
from resnet_jax.tasks.detection.testing import Tested
from resnet_jax.tasks.task import Report
from resnet_jax.weights.coco_names import UNUSED

OPTIONS = ('protocol', 'scales', 'batch_size', 'refine', 'detections')
SINGLE, MULTI = 'single', 'multi_scale'
# Shorter sides of appendix B, for a detector that was trained at 600.
SCALES, TRAINED_AT = (200, 400, 600, 800, 1000), 600
BATCH_SIZE = 8  # images of each device at once


def test(networks: Sequence[Detector], paths: Sequence[str], config: ConfigDict,
         flags: Mapping[str, Any]) -> Report:
    """Evaluates detectors together on the evaluation split; see `Task.test`.

    Args:
      networks: of the same classes; see `combined.detect` for how they are combined.
      paths: where they come from, for messages.
      config: whose data and metric are used.
      flags: those of `OPTIONS`; one that is missing has its default. See `evaluate`.

    Raises:
      UserError: the networks do not fit one another or the data, a flag is wrong, or a file
        cannot be written.
    """
    write = _writer(flags.get('detections'), config)
    config = config.copy_and_resolve_references()
    config.model.detector.masks = all(network.model.settings.masks for network in networks)
    source = data.create_eval_source(config)
    tested = find(networks, paths, source, config, flags)
    classes = class_names(networks, source)
    if write is not None and jax.process_index() == 0:
        write(tested, source, classes)
    return _report(tested, classes, len(source), _with_classes(config, data.num_classes(source)))


def find(networks: Sequence[Detector], paths: Sequence[str], source: Source, config: ConfigDict,
         flags: Mapping[str, Any]) -> list[Tested]:
    """Detects the objects in all images of a split, which every process gets.

    Args:
      source: the split.
      networks, paths, config, flags: see `test`.

    Raises:
      UserError: the networks do not fit one another or the data, a flag is wrong, or an image
        cannot be decoded.
    """
    check_networks(networks, paths, source)
    plan, canvases = planned(flags, config, networks[0])
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ('data',), devices=devices,
                         axis_types=(jax.sharding.AxisType.Auto,))
    return testing.run(
        _function(networks, plan, mesh), combined.weights_of(networks), source, canvases,
        _batch_size(flags, config, mesh.size), mesh,
        skip_unreadable=config.data.on_unreadable == 'skip')


def check_networks(networks: Sequence[Detector], paths: Sequence[str], source: Source) -> None:
    """Raises UserError if networks do not match each other or the data, or this has no boxes."""
    if getattr(source, 'most_objects', None) is None:
        raise UserError('the data has no boxes, which an evaluation of detectors needs; see '
                        'data.source.')
    first, numbers = networks[0], tuple(map(str, range(data.num_classes(source))))  # without names
    for network, path in zip(networks, paths, strict=True):
        if network.config.model.num_classes != data.num_classes(source):
            hint = ('; its classes are the category ids 1 to 90 of COCO, so evaluate it with a '
                    'copy of the annotations that lists all of these as categories, also the ten '
                    'without objects (see docs/detection.md)' if UNUSED in network.classes else '')
            raise UserError(f'{path} was trained on {network.config.model.num_classes} classes, '
                            f'but the data has {data.num_classes(source)}{hint}.')
        if network.classes != first.classes and numbers not in (network.classes, first.classes):
            a, b = next((a, b) for a, b in zip(first.classes, network.classes, strict=True)
                        if a != b)
            raise UserError(f'{path} and {paths[0]} are not an ensemble: they know different '
                            f'classes, such as {b!r} and {a!r}.')
        if network.config.data.channels != first.config.data.channels:
            raise UserError(f'{path} and {paths[0]} are not an ensemble: their images have '
                            f'{network.config.data.channels} and {first.config.data.channels} '
                            'channels.')


def class_names(networks: Sequence[Detector], source: Source) -> Sequence[str]:
    """The names of the classes in label order: those of the data, or else of the network."""
    names = tuple(getattr(source, 'class_names', ()))
    return names if len(names) == data.num_classes(source) else networks[0].classes


def planned(flags: Mapping[str, Any], config: ConfigDict,
            network: Detector) -> tuple[Plan, list[Canvas]]:
    """What the flags ask for, and the canvases of the views.

    The sizes are those of the config, or of the network if the config has no image size. At
    another scale, canvas and limits are in proportion.

    Raises:
      UserError: a flag is wrong.
    """
    section = (config if config.data.image_size else network.config).data
    first = canvas_of(section)._replace(channels=network.config.data.channels)
    base = first.short_side or min(first.sizes[0])
    protocol, scales = flags.get('protocol') or SINGLE, flags.get('scales')
    if protocol not in (SINGLE, MULTI):
        raise UserError(f'--protocol={protocol} is for classifiers; for detectors it is {SINGLE} '
                        f'or {MULTI}.')
    if scales and protocol != MULTI:
        raise UserError(f'--scales is for --protocol={MULTI}.')
    scales = _numbers(scales) if scales else [round(s * base / TRAINED_AT) for s in SCALES]
    scales = sorted({max(1, s) for s in scales}) if protocol == MULTI else [base]
    views = [base, *(s for s in scales if s != base)]
    plan = Plan(tuple(scales), tuple(map(views.index, scales)), base, bool(flags.get('refine')))
    return plan, [_scaled(first, s / base) for s in views]


def _numbers(texts: Sequence[str]) -> list[int]:
    try:
        scales = [int(text) for text in texts]
    except ValueError as error:
        raise UserError('--scales must be numbers separated by commas, got '
                        f'{",".join(texts)}.') from error
    if min(scales) < 1:
        raise UserError(f'--scales must be at least 1, got {min(scales)}.')
    return scales


def _scaled(canvas: Canvas, factor: float) -> Canvas:
    """A canvas on which images are larger by this factor."""
    def scaled(length: int) -> int:
        return max(1, round(length * factor))

    return canvas._replace(
        sizes=tuple((scaled(height), scaled(width)) for height, width in canvas.sizes),
        short_side=canvas.short_side and scaled(canvas.short_side),
        long_side=canvas.long_side and scaled(canvas.long_side))


def _function(networks: Sequence[Detector], plan: Plan, mesh: Mesh) -> Callable:
    """(weights, views) -> Detections; see `combined.detect`."""
    models = [network.model.clone(num_devices=mesh.size, mesh=mesh) for network in networks]
    return functools.partial(combined.detect, models, plan)


def _batch_size(flags: Mapping[str, Any], config: ConfigDict, num_devices: int) -> int:
    """Images at once in this process: a multiple of its devices."""
    size = flags.get('batch_size')
    if size is None and config.eval.batch_size is not None:
        size = config.eval.batch_size // jax.process_count()
    return max(1, (size or BATCH_SIZE * num_devices) // num_devices) * num_devices


def _with_classes(config: ConfigDict, num_classes: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.num_classes = num_classes
    return config


def _writer(name: str | None, config: ConfigDict) -> Callable | None:
    """(tested, source, classes) -> None: writes --detections; None where it is not given.

    Raises:
      UserError: the file or folder could not be written.
    """
    if not name:
        return None
    path = pathlib.Path(name).expanduser()
    if path.suffix not in ('.json', ''):
        raise UserError(f'--detections must be a file that ends in .json, for the format of COCO, '
                        f'or a folder, for that of VOC; got {name}.')
    if not path.absolute().parent.is_dir():
        raise UserError(f'--detections={name} cannot be written: there is no folder '
                        f'{path.absolute().parent}; make it first.')
    if (path.is_dir() if path.suffix else path.is_file()):
        raise UserError(f'--detections={name} is {"a folder" if path.suffix else "a file"} '
                        'already; choose another name.')
    split = pathlib.PurePath(config.data.eval_list).stem or config.data.eval_split

    def write(tested: Sequence[Tested], source: Source, classes: Sequence[str]) -> None:
        found = [image.found for image in tested]
        try:
            if path.suffix:
                known = getattr(source, 'category_ids', None)
                first = 1 if known is None else 0  # COCO's numbers are kept, others count from 1
                results.write_coco(
                    path, [image.id + first for image in tested], found,
                    range(1, len(classes) + 1) if known is None else known)
            else:
                results.write_voc(path, split, classes, [image.name for image in tested], found)
        except OSError as error:
            raise UserError(f'{name} cannot be written: {error.strerror}.') from error

    return write


def _report(tested: Sequence[Tested], classes: Sequence[str], num_images: int,
            config: ConfigDict) -> Report:
    """The numbers of `metrics.average_precision`, and the lines for a person."""
    truth, found = [x.objects for x in tested], [x.found for x in tested]
    values = metrics.average_precision(truth, found, config)
    of_classes = {name: [_finite(float(ap)) for ap in values.pop(name)]
                  for name in ('class_ap', 'mask_class_ap') if name in values}
    by_class = of_classes['class_ap']
    skipped = num_images - len(tested)
    text = (f'{metrics.line(values)}  on {len(tested):,} images'
            + (f'; {skipped:,} could not be read' if skipped else ''))
    counts = count_objects(truth, len(classes))
    width = max(map(len, classes))
    name = 'AP' if config.eval.metric == 'coco' else 'AP50'
    table = [f'{"class":{width}}  {name:>6}  objects', *(
        f'{label:{width}}  {"-" if ap is None else f"{ap:.2f}":>6}  {count:7,}'
        for label, ap, count in zip(classes, by_class, counts, strict=True))]
    return Report({**{f'eval/{key}': _finite(float(value)) for key, value in values.items()},
                   **{f'eval/{key}': value for key, value in of_classes.items()},
                   'eval/count': len(tested)},
                  '\n'.join([text, *table]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN
