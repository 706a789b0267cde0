"""Where a command writes its picture."""

import pathlib
from collections.abc import Collection

from resnet_jax.errors import UserError

CHARTS = ('.svg', '.png')  # endings of files that charts are written to


def output(name: str, endings: Collection[str]) -> pathlib.Path:
    """The file that --output names, which is looked at before the picture is made.

    Args:
      name: the flag.
      endings: that the file may have, such as '.png'.

    Raises:
      UserError: the file has another ending, or its folder is missing.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix not in endings:
        raise UserError(f'--output must end with {" or ".join(endings)}, got {name!r}.')
    if not path.absolute().parent.is_dir():
        raise UserError(f'{name} cannot be written: there is no folder {path.absolute().parent}; '
                        'make it first.')
    return path
