"""The paper's test protocols on trained classifiers and ensembles of them; see `evaluate`."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from resnet_jax import data
from resnet_jax.data import Source
from resnet_jax.data import fields as fields_lib
from resnet_jax.data.sizes import eval_resize, eval_size, text
from resnet_jax.data.views import Views
from resnet_jax.errors import UserError
from resnet_jax.output import write_whole
from resnet_jax.tasks.classification import inference
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.classification.scores import Scores, confusion_table, score
from resnet_jax.tasks.task import Report

WORST = 5  # classes that the report names
PROTOCOL = 'center_crop'
SCALES = ('224', '256', '384', '480', '640')
BATCH_SIZE = 128  # crops
# Fields of `config.data` that say how images are cropped; those of a row say the same thing.
CROP = (('image_size', 'eval_size'), ('eval_resize', 'eval_crop_share'), ('eval_filter',))


def test(networks: Sequence[Classifier], paths: Sequence[str], config: ConfigDict,
         flags: Mapping[str, Any]) -> Report:
    """Evaluates networks together on the evaluation split; see `Task.test`.

    Args:
      networks: their softmax outputs are averaged.
      paths: where they come from, for messages.
      config: whose data is used.
      flags: 'protocol', 'resize', 'scales', 'batch_size' and 'confusion'; see `evaluate`. And
        'set_fields'; see `Task.test`.

    Raises:
      UserError: the networks do not fit one another or the data, a flag is wrong, or a file
        cannot be written.
    """
    source = data.create_eval_source(config)
    check_networks(networks, paths, data.num_classes(source))
    views = views_of(flags, config, networks[0])
    predictions = inference.predict(
        networks, source, views, flags['batch_size'] or BATCH_SIZE,
        skip_unreadable=config.data.on_unreadable == 'skip')
    scores = score(predictions.log_probabilities, predictions.labels)
    classes = class_names(networks, source)
    if flags['confusion'] and jax.process_index() == 0:
        try:
            write_whole(pathlib.Path(flags['confusion']),
                        confusion_table(scores.confusion, classes))
        except OSError as error:
            raise UserError(f'{flags["confusion"]} cannot be written: {error.strerror}.') from error
    errors = [None if error != error else error for error in scores.class_error.tolist()]
    return Report({**scores.report(), 'eval/class_error': errors, 'eval/views': views.words},
                  f'{_text(scores, classes, predictions.skipped)}\n{views.words}')


def class_names(networks: Sequence[Classifier], source: Source) -> Sequence[str]:
    """The names of the classes in label order.

    Those that are stored with a network, otherwise those of the data, otherwise what `load` has.
    """
    names = [network.classes for network in networks if network.named]
    names.append(getattr(source, 'class_names', ()))
    return next((n for n in names if len(n) == data.num_classes(source)), networks[0].classes)


def check_networks(networks: Sequence[Classifier], paths: Sequence[str], num_classes: int) -> None:
    """Raises UserError if networks do not match each other or the data."""
    channels = networks[0].config.data.channels
    for network, path in zip(networks, paths, strict=True):
        known = network.config.model.num_classes
        if known != num_classes:
            raise UserError(
                f'{path} was trained on {known} classes, but the data has {num_classes}. Set '
                "data.class_list to a file of the network's classes.")
        if network.config.data.channels != channels:
            raise UserError(
                f'{path} and {paths[0]} are not an ensemble: their images have '
                f'{network.config.data.channels} and {channels} channels.')


def views_of(flags: Mapping[str, Any], config: ConfigDict, network: Classifier) -> Views:
    """Creates the views that the flags and the config select, or the network; see `_crop_fields`.

    Raises:
      UserError: a flag or a field is wrong.
    """
    fields = _crop_fields(config.data, network.config.data, flags['set_fields'])
    fields_lib.check_choices(fields)
    size = eval_size(fields)
    resize = flags['resize'] or eval_resize(fields)
    if resize < min(size):
        raise UserError(f'--resize, or data.eval_resize, ({resize}) must not be less than the '
                        f'size of the crop ({text(size)}).')
    given = flags['scales'] or SCALES
    try:
        scales = tuple(int(scale) for scale in given)
    except ValueError as error:
        raise UserError('--scales must be numbers separated by commas, got '
                        f'{",".join(given)}.') from error
    if min(scales) < 1:
        raise UserError(f'--scales must be at least 1, got {min(scales)}.')
    protocol = flags['protocol'] or PROTOCOL
    if protocol == 'single':
        raise UserError('--protocol=single is for detectors; for classifiers it is center_crop, '
                        'ten_crop or multi_scale.')
    return Views(protocol, size, resize, scales, fields.eval_filter)


def _crop_fields(given: ConfigDict, own: ConfigDict, set_fields: Collection[str]) -> ConfigDict:
    """The section `data` whose fields of CROP hold.

    Where the config leaves the image size open, and where published weights come with files that
    say how images are cropped, the network's own fields hold, except those that the user has set.

    Args:
      given, own: the section of the config, and that of the network.
      set_fields: by path.
    """
    is_published = own.source is None and own.eval_crop_share is not None
    if given.image_size and not is_published:
        return given
    fields = given.copy_and_resolve_references()
    with fields.ignore_type():  # a size is a number or a pair
        for names in CROP:
            if not any(f'data.{name}' in set_fields for name in names):
                fields.update({name: own[name] for name in names})
        fields.image_size = fields.image_size or own.image_size
    return fields


def _text(scores: Scores, classes: Sequence[str], skipped: int) -> str:
    errors = {name: error for name, error in zip(classes, scores.class_error, strict=True)
              if error == error}
    worst = sorted(errors, key=errors.__getitem__, reverse=True)[:WORST]
    return (
        f'top-1 error {scores.top1_error:.2f} %  top-5 error {scores.top5_error:.2f} %  '
        f'loss {scores.loss:.4f}  calibration error {scores.calibration_error:.2f} %  '
        f'on {scores.count:,} images'
        + (f'; {skipped:,} could not be read' if skipped else '')
        + '\nhighest top-1 errors of a class: '
        + ', '.join(f'{name.split(",")[0]} {errors[name]:.2f} %' for name in worst))
