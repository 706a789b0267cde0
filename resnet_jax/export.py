"""Exports a trained network for other programs.

  python -m resnet_jax.export --checkpoint=runs/r50 --output=r50.safetensors
  python -m resnet_jax.export --checkpoint=runs/r50 --output=r50.stablehlo

A .stablehlo file contains the whole network, including weights and input normalisation, for any
batch size on CPU, GPU and TPU. Load it with `jax.export.deserialize`; its `call` maps

  of a classifier: uint8 images [N, H, W, C] to logits, float32 [N, classes];
  of a detector: uint8 images [N, H, W, C] and int32 sizes [N, 2], to a dict of boxes float32
      [N, D, 4], scores float32 [N, D], classes int32 [N, D] and valid bool [N, D].

Images for a detector lie in the upper left corner of a canvas of the size used in training; `sizes`
are their heights and widths there. Boxes are in pixels of the canvas, suppressed and sorted; those
that are not valid are padding.

A .safetensors file has torchvision's parameter names; `resnet_jax.convert` reads it back unchanged.
"""

import pathlib

from absl import flags

from resnet_jax import cli, storage
from resnet_jax.data.sizes import pair
from resnet_jax.errors import UserError

CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights; one checkpoint of a run, RUN/checkpoints/STEP; or '
    'weights of the Hugging Face hub by name, such as hf:timm/resnet50.a1_in1k.')
OUTPUT = cli.flag(
    flags.DEFINE_string, 'output', None, 'File to write: .safetensors or .stablehlo.')
IMAGE_SIZE = cli.flag(
    flags.DEFINE_list, 'image_size', None,
    'Size of the input of a .stablehlo file: the side of a square, or HEIGHT,WIDTH. Default: as in '
    'training; of a detector with several canvases, the first.')


def image_size() -> tuple[int, int] | None:
    """The size that --image_size gives.

    Raises:
      UserError: it is none.
    """
    if IMAGE_SIZE.value is None:
        return None
    try:
        sides = tuple(map(int, IMAGE_SIZE.value))
        return pair(sides[0] if len(sides) == 1 else sides)
    except ValueError as error:
        raise UserError('--image_size must be the side of a square or HEIGHT,WIDTH, such as '
                        f'800,1344; got {",".join(IMAGE_SIZE.value)}.') from error


def main(_) -> None:
    import resnet_jax
    from resnet_jax import tasks, weights
    from resnet_jax.weights import stored

    if len(CHECKPOINT.value) != 1:
        raise UserError(cli.give('one --checkpoint=DIR, a workdir or converted weights', __name__))
    path, output = storage.path_of(CHECKPOINT.value[0]), pathlib.Path(OUTPUT.value).expanduser()
    if output.suffix not in ('.safetensors', '.stablehlo'):
        raise UserError(f'--output must end in .safetensors or .stablehlo, got {output}.')
    if not output.parent.is_dir():
        raise UserError(f'there is no folder {output.parent}.')
    exports = tasks.get(task := stored.config_of(path).task).exports
    if output.suffix not in exports:
        others = f'; it can be as {" or ".join(exports)}' if exports else ''
        raise UserError(f'{path} was trained for {task}, which cannot be exported as '
                        f'{output.suffix}{others}.')
    size = image_size()
    weights.write_bytes_whole(
        output, exports[output.suffix](resnet_jax.load(path), {'image_size': size}))
    print(f'wrote {output}')


if __name__ == '__main__':
    cli.run(main, needs=['--output=FILE'])
