"""Setting fields of a config by their names, and what is said of names that are wrong."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.stored import leaves
from resnet_jax.errors import UserError


def problem_of_name(name: str, known: Collection[str]) -> str | None:
    """What is wrong with the name of a field, in one sentence; None if it is right.

    Args:
      name: such as 'model.depth'.
      known: the names of all fields.
    """
    if name in known:
        return None
    if any(field.startswith(f'{name}.') for field in known):
        return f'{name} is a section of the config; set one of its fields.'
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f'the config has no field {name}' + (f'; did you mean {close[0]}?' if close else '.')


def changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config in which some fields have other values.

    Args:
      config: see `resnet_jax.config`.
      fields: values by the names of the fields, such as {'model.depth': 8}.

    Raises:
      UserError: there is no such field, or a value is of another type than its field.
    """
    config, known = config.copy_and_resolve_references(), leaves(config)
    for name, value in fields.items():
        if problem := problem_of_name(name, known):
            raise UserError(problem)
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(f'{name}={value!r} has the wrong type; the config has '
                            f'{known[name]!r}.') from error
    return config
