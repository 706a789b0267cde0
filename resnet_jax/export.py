"""Exports a trained network for other programs.

  python -m resnet_jax.export --checkpoint=runs/r50 --output=r50.safetensors
  python -m resnet_jax.export --checkpoint=runs/r50 --output=r50.stablehlo

A .safetensors file has torchvision's parameter names; `resnet_jax.convert` reads it back unchanged.
A .stablehlo file contains the whole network, including weights and input normalisation, for any
batch size on CPU, GPU and TPU. Load it with `jax.export.deserialize`; its `call` maps uint8 images
[N, H, W, C] to logits, float32 [N, classes].
"""

import pathlib

from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError

CHECKPOINT = cli.flag(
    flags.DEFINE_multi_string, 'checkpoint', [],
    'Folder of a run or of converted weights, or one checkpoint of a run, RUN/checkpoints/STEP.')
OUTPUT = cli.flag(
    flags.DEFINE_string, 'output', None, 'File to write: .safetensors or .stablehlo.')
IMAGE_SIZE = cli.flag(
    flags.DEFINE_integer, 'image_size', None,
    'Height and width of the input of a .stablehlo file. Default: as in training.', lower_bound=1)


def main(_) -> None:
    from resnet_jax import weights
    from resnet_jax.tasks.classification import classifier
    from resnet_jax.weights import stored

    if len(CHECKPOINT.value) != 1:
        raise UserError(cli.give('one --checkpoint=DIR, a workdir or converted weights', __name__))
    path, output = pathlib.Path(CHECKPOINT.value[0]), pathlib.Path(OUTPUT.value).expanduser()
    if output.suffix not in ('.safetensors', '.stablehlo'):
        raise UserError(f'--output must end in .safetensors or .stablehlo, got {output}.')
    if not output.parent.is_dir():
        raise UserError(f'there is no folder {output.parent}.')
    if output.suffix == '.safetensors':
        weights.write_torchvision(output, stored.read(path))
    else:
        network = classifier.load(path)
        size = IMAGE_SIZE.value or network.config.data.image_size
        weights.write_bytes_whole(output, stablehlo(network, size))
    print(f'wrote {output}')


def stablehlo(network, image_size: int) -> bytearray:
    """The network as a serialised `jax.export.Exported` with a symbolic batch size.

    Args:
      network: a `resnet_jax.tasks.classification.classifier.Classifier`.
      image_size: height and width of its images.

    Returns:
      What `jax.export.deserialize` takes. Its function is uint8 [b, image_size, image_size, C] ->
      float32 [b, classes].

    Raises:
      UserError: the network does not take images of this size.
    """
    import functools

    import jax
    import numpy as np
    from jax import export

    from resnet_jax.models import ConfigError
    from resnet_jax.tasks.classification.classifier import logits

    weights = dict(network.variables), dict(network.normalization)
    shape = export.symbolic_shape(
        f'b, {image_size}, {image_size}, {network.config.data.channels}')
    function = jax.jit(functools.partial(logits, network.model, weights))
    try:
        exported = export.export(function, platforms=('cpu', 'cuda', 'tpu'))(
            jax.ShapeDtypeStruct(shape, np.uint8))
    except ConfigError as error:
        raise UserError(f'--image_size={image_size}: {error}') from error
    return exported.serialize()


if __name__ == '__main__':
    cli.run(main, needs=['--output=FILE'])
