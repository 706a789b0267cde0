"""What the data commands share: flags that name a dataset, and one sentence for a mistake."""

from collections.abc import Callable, Sequence

from absl import app, flags

from resnet_jax import cli
from resnet_jax import config as config_lib
from resnet_jax.data import SOURCES, Source, create_source
from resnet_jax.errors import UserError

SOURCE = flags.DEFINE_enum('source', 'folder', SOURCES[:3], 'Where the images come from.')
PATH = flags.DEFINE_string('path', '', 'Folder of the dataset; of tfds: its data_dir.')
TFDS_NAME = flags.DEFINE_string('tfds_name', '', 'TFDS builder, such as cifar10.')
CLASS_LIST = flags.DEFINE_string(
    'class_list', '', 'File of class names in label order; empty: the folders, sorted by name.')
LABEL_FILE = flags.DEFINE_string(
    'label_file', '', 'File of labels for an evaluation folder without class folders.')
SPLITS = flags.DEFINE_list('splits', ['train', 'test'],
                           'Splits; test is also called val or validation.')


def source_from_flags(split: str) -> Source:
    """The split 'train' or 'test' of the dataset that the flags name.

    Raises:
      UserError: it is missing or damaged.
    """
    config = config_lib.default()
    config.data.source, config.data.path = SOURCE.value, PATH.value
    config.data.tfds_name = TFDS_NAME.value
    config.data.class_list, config.data.label_file = CLASS_LIST.value, LABEL_FILE.value
    if split not in ('train', 'test'):
        raise UserError(f'--splits must be of train and test, got {split!r}.')
    return create_source(config, split)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags and calls main; a UserError ends in its sentence and exit code 1."""
    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f'{argv[1]!r} is not a flag; see --help.')
            main(argv)
        except UserError as error:
            cli.fail(str(error))

    app.run(guarded)
