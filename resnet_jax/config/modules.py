"""Modules of the user's own that a field of the config names."""

import importlib
from types import ModuleType

from resnet_jax.errors import UserError


def is_module(name: object) -> bool:
    """Whether a value has the form of a module's name, such as 'my_package.my_source'."""
    return isinstance(name, str) and '.' in name and all(
        part.isidentifier() for part in name.split('.'))


def find_module(field: str, name: str) -> ModuleType:
    """Imports the module that a field names.

    Args:
      field: such as 'data.source', for the message.
      name: `is_module`.

    Raises:
      UserError: there is no such module. What is wrong within the module keeps its traceback.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
            raise  # the module is there, and what it imports is not
        raise UserError(f'{field} names the module {name}, and Python finds no {error.name}: add '
                        'its folder to PYTHONPATH.') from error
