"""Image sources, and the pipelines that turn them into batches.

A batch is a pure function of (config, seed, step): a tree of arrays with a leading image axis,
sharded over the mesh axis 'data'. 'image' is float32 [N, H, W, C]; 'mask' float32 [N] is 0 for
images that pad the last batch of an evaluation; the rest are the targets, which in classification
are 'label' int32 [N]. With mixup or CutMix, a training batch also has 'mix_label' and 'mix_weight';
see `resnet_jax.data.augment`.

A new task passes its transforms to `create_pipelines`; a new source is entered in the table of
`resnet_jax.data.registry`.
"""

from typing import Any

from resnet_jax.data.registry import (
    SOURCES,
    count_classes,
    create_eval_source,
    create_source,
    eval_split,
)
from resnet_jax.data.sizes import image_size
from resnet_jax.data.sources import check_unchanged
from resnet_jax.data.types import (
    Batch,
    Item,
    Normalization,
    Pipeline,
    Source,
    num_classes,
)

__all__ = ['SOURCES', 'Batch', 'Item', 'Normalization', 'Pipeline', 'Source',
           'blank_pipelines', 'check_config', 'check_unchanged', 'count_classes',
           'create_eval_source', 'create_pipelines', 'create_source', 'eval_split', 'image_size',
           'num_classes']


def __getattr__(name: str) -> Any:
    """Imports Grain and the image decoders only when a pipeline is used."""
    if name == 'check_config':
        from resnet_jax.data import fields

        return fields.check
    if name in ('blank_pipelines', 'create_pipelines'):
        from resnet_jax.data import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
