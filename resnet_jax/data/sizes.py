"""Image sizes: the config has one number for a square, or a pair (height, width)."""

from typing import Any

from ml_collections import ConfigDict

from resnet_jax.errors import UserError


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size as configs have it: the side of a square, or a pair.

    Raises:
      ValueError: it is neither, or below 1.
    """
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(
            isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ValueError(f'{size!r} is not an image size')
    return tuple(sides)


def image_size(data: ConfigDict) -> tuple[int, int]:
    """(height, width) of the network's input.

    Args:
      data: the section `data` of a config.

    Raises:
      UserError: `data.image_size` is not set, or is neither a number nor a pair.
    """
    if data.image_size is None:
        raise UserError('data.image_size is not set; pass --config.data.image_size=VALUE.')
    return _pair_of(data, 'image_size')


def eval_size(data: ConfigDict) -> tuple[int, int]:
    """(height, width) of the network's input in evaluation and prediction; see `image_size`."""
    return image_size(data) if data.eval_size is None else _pair_of(data, 'eval_size')


def eval_resize(data: ConfigDict) -> int:
    """The shorter side that an image is scaled to before the central crop of `eval_size`.

    Raises:
      UserError: two fields say it, or see `image_size`.
    """
    if data.eval_resize is not None and data.eval_crop_share is not None:
        raise UserError('data.eval_resize and data.eval_crop_share cannot both be set, since they '
                        'say the same; set one of them to none.')
    shorter = min(eval_size(data))
    if data.eval_crop_share is not None:
        return int(shorter / data.eval_crop_share)  # rounded down, as in timm
    return data.eval_resize or shorter


def _pair_of(data: ConfigDict, field: str) -> tuple[int, int]:
    try:
        return pair(data[field])
    except ValueError as error:
        raise UserError(f'data.{field} must be at least 1, one number or a pair '
                        f"'(height, width)'; got {data[field]!r}.") from error


def text(size: Any) -> str:
    """For messages: '224' of a square, otherwise '224 x 320', the height first."""
    height, width = pair(size)
    return str(height) if height == width else f'{height} x {width}'
