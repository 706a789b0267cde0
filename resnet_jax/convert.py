"""Converts weights of other projects to a checkpoint folder that all commands can read.

  python -m resnet_jax.convert --input=resnet50.safetensors --output=weights/resnet50
  python -m resnet_jax.convert --input=resnet20.th --output=weights/resnet20 \\
      --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225

Reads torchvision's and timm's ResNets, ResNeXts, wide ResNets and VGGs, timm's ResNet-D and
pre-activation ResNets (resnet50d, resnetv2_50, …), Hugging Face's ResNetForImageClassification, the
common CIFAR networks with shortcuts of option A or B, the authors' Caffe models, Yahoo's Open-NSFW,
a ResNet-50 of half the width, torchvision's detectors fasterrcnn_resnet50_fpn and
maskrcnn_resnet50_fpn, detectron2's Faster and Mask R-CNN (model_final_*.pkl of its model zoo, R50
and R101, C4 and FPN), and the R-50.pkl and R-101.pkl of MSRA that these start from. The network is
recognised by parameter names and shapes, and checked against config.json if the weights come with
one. The command prints what it recognised and what it had to assume.
"""

import pathlib

from absl import flags

from resnet_jax import cli, storage
from resnet_jax.errors import UserError

INPUT = cli.flag(
    flags.DEFINE_string, 'input', None,
    "File of weights: .safetensors, PyTorch's .pth, .th, .pt and .bin, .npz (tensors under "
    "torchvision's names), detectron2's .pkl or .caffemodel; or a folder downloaded from Hugging "
    'Face, or its name there, such as hf:timm/resnet50.a1_in1k. A config.json and '
    'preprocessor_config.json in the same folder are read too. Nothing in a file is run, and '
    'PyTorch is not needed.')
OUTPUT = cli.flag(
    flags.DEFINE_string, 'output', None,
    'Folder to write to. It must not contain checkpoints yet.')
STRIDE_IN = cli.flag(
    flags.DEFINE_enum, 'stride_in', None, ['v1', 'v1.5'],
    'Convolution of a bottleneck that has the stride: v1, the first 1x1; v1.5, the 3x3. Tensors do '
    'not show it. Default: as in the JSON files beside the weights, otherwise v1 for Caffe and '
    'detectron2 and v1.5 for all others.')
MEAN = cli.flag(
    flags.DEFINE_list, 'mean', None,
    'Mean of the input, one number per channel as a fraction of the full range. Default: as in '
    'the JSON files beside the weights, otherwise that of ImageNet. CIFAR networks without such '
    'files need --mean and --std.')
STD = cli.flag(
    flags.DEFINE_list, 'std', None,
    'Standard deviation of the input, in the same form.')
BN_EPSILON = cli.flag(
    flags.DEFINE_float, 'bn_epsilon', None,
    'What batch normalisation adds to the variance. Tensors do not show it. Default: 0 for '
    "torchvision's detectors, as in its weights for COCO (1e-5 if they were trained from a "
    'classifier), and 1e-5 for all others.', lower_bound=0)
FAMILY = cli.flag(
    flags.DEFINE_string, 'family', None,
    'Module of your own, such as my_package.my_network, that registers a network and what its '
    'tensors are called. Not needed for the networks above.')
CLASSES = cli.flag(
    flags.DEFINE_string, 'classes', None,
    'Text file of class names, one per line in label order, to store with the weights. Not '
    'needed for ImageNet and COCO.')


def main(_) -> None:
    from resnet_jax import models, weights
    from resnet_jax.weights import stored

    if FAMILY.value:
        try:
            models.family_of({'family': FAMILY.value})
        except models.ConfigError as error:
            raise UserError(f'--family: {error}') from error
    if '://' in INPUT.value:
        raise UserError(f'--input={INPUT.value} is not on this machine: download it first, and '
                        'give the file or folder.')
    found = weights.read(pathlib.Path(INPUT.value).expanduser(), STRIDE_IN.value,
                         _numbers('mean', MEAN.value), _numbers('std', STD.value),
                         BN_EPSILON.value)
    classes = (_classes(found.config.model.num_classes) if CLASSES.value else found.classes)
    print(found.describe())
    stored.write(storage.path_of(OUTPUT.value).expanduser(), found, classes)
    print(f'wrote {OUTPUT.value}')


def _numbers(flag: str, values: list[str] | None) -> tuple[float, ...] | None:
    try:
        return values and tuple(float(value) for value in values)
    except ValueError as error:
        raise UserError(f'--{flag} must be numbers separated by commas, got {",".join(values)}.'
                        ) from error


def _classes(num_classes: int) -> list[str]:
    try:
        names = pathlib.Path(CLASSES.value).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{CLASSES.value} cannot be read as text.') from error
    if len(names) != num_classes:
        raise UserError(f'{CLASSES.value} has {len(names)} lines for {num_classes} classes.')
    return names


if __name__ == '__main__':
    cli.run(main, needs=['--input=FILE', '--output=DIR'])
