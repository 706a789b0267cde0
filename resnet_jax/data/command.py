"""Flags shared by the data commands, which select a dataset."""

from absl import flags

from resnet_jax import cli
from resnet_jax import config as config_lib
from resnet_jax.data import fields
from resnet_jax.data.registry import SOURCES, create_source, has_test
from resnet_jax.data.types import Source
from resnet_jax.errors import UserError

SOURCE = cli.flag(
    flags.DEFINE_string, 'source', 'folder',
    f'Where the images come from: {", ".join(SOURCES)}, or a module with a function '
    'create(config, split).')
PATH = cli.flag(
    flags.DEFINE_string, 'path', '', 'Folder of the dataset; for tfds its data_dir.')
TFDS_NAME = cli.flag(flags.DEFINE_string, 'tfds_name', '', 'TFDS builder, such as cifar10.')
CLASS_LIST = cli.flag(
    flags.DEFINE_string, 'class_list', '',
    'File of class names in label order. Default: the folder names, sorted.')
LABEL_FILE = cli.flag(
    flags.DEFINE_string, 'label_file', '',
    'File of labels for an evaluation folder without class folders.')
TRAIN_LIST = cli.flag(
    flags.DEFINE_string, 'train_list', '',
    'Training images of voc, coco or tfds with boxes; see data.train_list.')
EVAL_LIST = cli.flag(
    flags.DEFINE_string, 'eval_list', '',
    'Evaluation images of voc, coco or tfds with boxes; see data.eval_list.')
BAD_BOXES = cli.flag(
    flags.DEFINE_enum, 'bad_boxes', 'error', fields.CHOICES['bad_boxes'],
    'Boxes of no area are an error, or left out (skip).')
SPLITS = cli.flag(
    flags.DEFINE_list, 'splits', ['train', 'test'],
    'Splits to read; the test split may also be named val or validation.')


def source_from_flags(split: str, *, report: bool = False) -> Source:
    """The split 'train' or 'test' of the dataset that the flags name.

    Args:
      split: its name.
      report: whether boxes that are an error are left out and described in attributes of the
        source instead; see `resnet_jax.data.boxes.check_boxes`.

    Raises:
      UserError: it is missing or damaged.
    """
    if not PATH.value and not flags.FLAGS['source'].present:
        raise UserError(cli.give('--path=FOLDER, or --source=tfds with --tfds_name=NAME',
                                 '__main__'))
    config = config_lib.default()
    config.data.source, config.data.path = SOURCE.value, PATH.value
    config.data.tfds_name = TFDS_NAME.value
    config.data.class_list, config.data.label_file = CLASS_LIST.value, LABEL_FILE.value
    config.data.train_list, config.data.eval_list = TRAIN_LIST.value, EVAL_LIST.value
    config.data.bad_boxes = BAD_BOXES.value
    if report and BAD_BOXES.value == 'error':
        config.data.bad_boxes = 'report'
    if split not in ('train', 'test'):
        raise UserError(f'--splits must be train, test or both, got {split!r}.')
    if split == 'test' and not has_test(config):
        raise UserError(f'{PATH.value} has no evaluation split; pass --splits=train.')
    return create_source(config, split)
