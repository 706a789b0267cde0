"""The names of the 1000 classes of ImageNet."""

import functools
from importlib import resources


@functools.cache
def imagenet_classes() -> list[str]:
    """Such as 'tench, Tinca tinca', in label order: that of the WordNet ids (ILSVRC 2012)."""
    table = resources.files('resnet_jax').joinpath('imagenet1k_classes.tsv')
    return [line.split('\t')[2] for line in table.read_text(encoding='utf-8').splitlines()]
