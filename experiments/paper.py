"""The paper's numbers that the experiments are compared with. Errors in percent."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from resnet_jax.config import upgrade

CIFAR10 = 'CIFAR-10'
IMAGENET = 'ImageNet'

# Table 6: test error of residual networks on CIFAR-10.
CIFAR10_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
CIFAR10_110_RUNS = '6.61 ± 0.16 over 5 runs'


class Published(NamedTuple):
    """Published errors of a network on ImageNet's validation split; None where there is none.

    Attributes:
      top1, top5: 10-crop (tables 2 and 3).
      best_top1, best_top5: of the best single model, at several scales (table 4).
    """

    top1: float | None = None
    top5: float | None = None
    best_top1: float | None = None
    best_top5: float | None = None


# By name; '-A', '-B', '-C' is the shortcut option, B where none is named and there are any.
IMAGENET_ERROR = {
    'plain-18': Published(27.94),
    'plain-34': Published(28.54, 10.02),
    'ResNet-18-A': Published(27.88),
    'ResNet-34-A': Published(25.03, 7.76),
    'ResNet-34-B': Published(24.52, 7.46, 21.84, 5.71),
    'ResNet-34-C': Published(24.19, 7.40, 21.53, 5.60),
    'ResNet-50': Published(22.85, 6.71, 20.74, 5.25),
    'ResNet-101': Published(21.75, 6.05, 19.87, 4.60),
    'ResNet-152': Published(21.43, 5.71, 19.38, 4.49),
    'VGG-16': Published(28.07, 9.33),
    # Table 4 names it "VGG (v5)": network E of Simonyan and Zisserman.
    'VGG-19': Published(None, None, 24.4, 7.1),
    'GoogLeNet': Published(None, 9.15, None, 7.89),
}

# Table 9: mAP at an IoU of 0.5 and averaged over 0.5 to 0.95, of Faster R-CNN with ResNet-101 on
# COCO's validation split, or on its test-dev after training on both others.
COCO_AP = {
    'baseline': (48.4, 27.2),
    '+ box refinement': (49.9, 29.9),
    '+ global context': (51.1, 30.0),
    '+ multi-scale testing': (53.8, 32.5),
}
COCO_TEST_DEV_AP = {
    '+ global context': (53.3, 32.2),
    '+ multi-scale testing': (55.7, 34.9),
    'ensemble': (59.0, 37.4),
}

# Szegedy et al., "Going Deeper with Convolutions", 2015, table 1: sums of the columns "params" and
# "ops", in thousands and millions there.
GOOGLENET_PARAMETERS = 6_797_700
GOOGLENET_MULTIPLY_ADDS = 1_502_000_000

# Figure 7, in words: the paper prints no numbers there.
RESPONSES = ('figure 7: residual networks respond less than their plain twins, and the deeper the '
             'less')


def dataset(config: Mapping[str, Any]) -> str:
    """What a run was trained on: 'CIFAR-10', 'ImageNet', or the name of the source.

    Args:
      config: fields by path; see `resnet_jax.config.leaves`.
    """
    kind = (config['data.image_size'], config['model.num_classes'])
    if config['data.source'] not in ('digits', 'synthetic'):
        if kind == (32, 10):
            return CIFAR10
        if kind[0] > 32 and kind[1] == 1000:
            return IMAGENET
    return config['data.tfds_name'] or config['data.source']


def name(config: Mapping[str, Any]) -> str:
    """Of a network, such as 'ResNet-56' or 'plain-18'."""
    from resnet_jax import models  # JAX is imported only when it is needed

    fields, _ = upgrade(dict(config))  # a ledger may be older than a field
    return models.title({name.removeprefix('model.'): value for name, value in fields.items()
                         if name.startswith('model.')})


def error(config: Mapping[str, Any]) -> float | None:
    """The paper's top-1 error of a run: CIFAR-10 test, or ImageNet 10-crop validation."""
    if dataset(config) == CIFAR10:
        if name(config) != f'ResNet-{config["model.depth"]}' or config.get('model.bottleneck') or (
                config['model.shortcut'] != 'A'):
            return None
        return CIFAR10_ERROR.get(config['model.depth'])
    if dataset(config) == IMAGENET:
        named = name(config)
        with_option = f'{named}-{config["model.shortcut"]}'
        if with_option in IMAGENET_ERROR:
            return IMAGENET_ERROR[with_option].top1
        if config['model.plain'] or config['model.shortcut'] == 'B':
            return IMAGENET_ERROR.get(named, Published()).top1
    return None


def text(value: float | None) -> str:
    """Such as '8.75', or '-' where the paper has no number."""
    return '-' if value is None else f'{value:.2f}'


def pair(a: Mapping[str, Any], b: Mapping[str, Any], otherwise: str) -> str:
    """The paper's errors of two runs side by side, or a word on why there are none."""
    errors = error(a), error(b)
    if None not in errors:
        protocol = ' (10-crop)' if dataset(a) == IMAGENET else ''
        return f'{text(errors[0])} % against {text(errors[1])} %{protocol}'
    if dataset(a) in (CIFAR10, IMAGENET):
        return otherwise
    return f'no number for {dataset(a)}; {otherwise}'
