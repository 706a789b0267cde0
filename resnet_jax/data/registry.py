"""The table of data sources. To add a source, write a file and enter it here.

A source is a module with a function

    create(config, split) -> Source

that opens the split 'train' or 'test' (see `resnet_jax.data.types`) and raises UserError where
fields of the config are wrong or data is missing. It may also have

    ON_DISK = True                  the user provides the data, which may be missing where a config
                                    is only compiled
    example_target(config) -> Tree  the target of any item, known without the data; ON_DISK only
    num_images(config, split) -> int | None
                                    images of the split, where known without the data; ON_DISK only
    count_classes(config) -> int | None
                                    the number of classes, found without opening the split; None
                                    where the config chooses it
    has_test(config) -> bool        whether there is a split 'test', where there may be none
"""

from types import ModuleType

from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax.data.sources import hold_out, share_to_hold_out
from resnet_jax.data.types import Source
from resnet_jax.errors import UserError

# Modules and not functions, so that only the one in use is imported.
SOURCES = {
    'folder': 'resnet_jax.data.folder',
    'tfds': 'resnet_jax.data.tfds',
    'shards': 'resnet_jax.data.shards',
    'voc': 'resnet_jax.data.voc',
    'coco': 'resnet_jax.data.coco',
    'instances': 'resnet_jax.data.instances',
    'imagenet_boxes': 'resnet_jax.data.imagenet_boxes',
    'box_table': 'resnet_jax.data.box_table',
    'digits': 'resnet_jax.data.digits',
    'synthetic': 'resnet_jax.data.synthetic',
    'scenes': 'resnet_jax.data.scenes',
    'scene_digits': 'resnet_jax.data.scene_digits',
}


def find(name: str | None) -> ModuleType:
    """Imports the module of a source.

    Args:
      name: from the table, or a module that Python can import, such as 'my_package.my_source'.

    Raises:
      UserError: there is no such source.
    """
    path = SOURCES.get(name, name)
    if not config_lib.is_module(path):
        raise UserError(f'data.source must be one of {", ".join(SOURCES)}, or a module with a '
                        f'function create(config, split) such as my_package.my_source; '
                        f'got {name!r}.')
    module = config_lib.find_module('data.source', path)
    if not hasattr(module, 'create'):
        raise UserError(f'data.source names the module {path}, which has no function '
                        'create(config, split).')
    return module


def create_source(config: ConfigDict, split: str) -> Source:
    """Opens the split 'train' or 'test' of `config.data.source`.

    Raises:
      UserError: there is no such source, or its data is missing; the sentence says what to do.
    """
    return find(config.data.source).create(config, split)


def create_eval_source(config: ConfigDict) -> Source:
    """Opens the split named by `config.data.eval_split`: 'test', or the held-out training images.

    Raises:
      UserError: as `create_source`.
    """
    split, count = eval_split(config)
    if split == 'holdout':
        return hold_out(create_source(config, 'train'), count, True)
    return create_source(config, 'test')


def eval_split(config: ConfigDict) -> tuple[str, int]:
    """What `config.data` says of the evaluation split; 'auto' looks at the data.

    Returns:
      'test' or 'holdout', and the number of training images to hold out.

    Raises:
      UserError: as `create_source`.
    """
    data = config.data
    if data.eval_split != 'auto':
        return data.eval_split, data.holdout
    if has_test(config):
        return 'test', data.holdout
    return 'holdout', data.holdout or share_to_hold_out(len(create_source(config, 'train')))


def has_test(config: ConfigDict) -> bool:
    """Whether `config.data.source` has a split 'test', as far as its module can tell."""
    return getattr(find(config.data.source), 'has_test', lambda _: True)(config)


def count_classes(config: ConfigDict) -> int | None:
    """Counts the classes of `config.data.source`; None if it has none or the config decides.

    Raises:
      UserError: as `create_source`.
    """
    source = find(config.data.source)
    if hasattr(source, 'count_classes'):
        return source.count_classes(config)
    return getattr(source.create(config, 'train'), 'num_classes', None)
