"""Flags shared by the data commands, which select a dataset."""

from absl import flags

from resnet_jax import cli
from resnet_jax import config as config_lib
from resnet_jax.data.registry import SOURCES, create_source
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
SPLITS = cli.flag(
    flags.DEFINE_list, 'splits', ['train', 'test'],
    'Splits to read; the test split may also be named val or validation.')


def source_from_flags(split: str) -> Source:
    """The split 'train' or 'test' of the dataset that the flags name.

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
    if split not in ('train', 'test'):
        raise UserError(f'--splits must be train, test or both, got {split!r}.')
    return create_source(config, split)
