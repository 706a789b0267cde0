"""The names of the 1000 classes of ImageNet."""

import functools
from importlib import resources


@functools.cache
def imagenet_classes() -> list[str]:
    """Names such as 'tench, Tinca tinca', ordered by WordNet id, as labels are (ILSVRC 2012)."""
    return list(wordnet_names().values())


@functools.cache
def wordnet_names() -> dict[str, str]:
    """The names by WordNet id, such as {'n01440764': 'tench, Tinca tinca', …}."""
    table = resources.files('resnet_jax.data').joinpath('imagenet1k_classes.tsv')
    rows = [line.split('\t') for line in table.read_text(encoding='utf-8').splitlines()]
    return {identity: name for _, identity, name in rows}
