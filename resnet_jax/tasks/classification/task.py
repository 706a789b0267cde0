"""Image classification as a task: cross-entropy, top-1 and top-5 error."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax import data, weights
from resnet_jax.data import Batch
from resnet_jax.errors import UserError
from resnet_jax.models.depth import STREAM
from resnet_jax.tasks.classification import classifier, prediction, protocols
from resnet_jax.tasks.classification.metrics import (
    Metrics,
    binary_cross_entropy,
    cross_entropy,
    targets,
)
from resnet_jax.tasks.classification.stablehlo import stablehlo
from resnet_jax.tasks.task import Headline, Task

# The purpose of the keys of stochastic depth, below those of the loss.
DEPTH = 1


def loss(model: nn.Module, variables: Mapping[str, Any], batch: Batch, key: jax.Array,
         config: ConfigDict) -> tuple[jax.Array, Any, Metrics]:
    """The loss of `config.loss`, summed over the images; see `Task.loss`.

    Args:
      model, variables: the network.
      batch: 'image' float32 [N, H, W, C], normalised; 'label' int32 [N]; 'mask' float32 [N]; of
        mixed images also 'mix_label' int32 [N] and 'mix_weight' float32 [N].
      key: of dropout and stochastic depth.
      config: the field `loss` is read.
    """
    logits, updates = model.apply(variables, batch['image'], train=True, mutable=['batch_stats'],
                                  rngs={'dropout': key, STREAM: jax.random.fold_in(key, DEPTH)})
    losses = _losses(logits, batch, config.loss)
    with jax.named_scope('loss'):
        total = (losses * batch['mask']).sum()
    return total, updates.get('batch_stats', {}), Metrics.of_batch(logits, batch, losses)


def _losses(logits: jax.Array, batch: Batch, loss: ConfigDict) -> jax.Array:
    """The loss of each image, float32 [N]; of a mixed one, weighted over both of its labels."""
    if loss.name == 'binary':
        wanted = targets(batch, logits.shape[1], loss.label_smoothing)
        return binary_cross_entropy(logits, wanted, loss.target_threshold)
    losses = cross_entropy(logits, batch['label'], loss.label_smoothing)
    if 'mix_label' not in batch:
        return losses
    mixed_in = cross_entropy(logits, batch['mix_label'], loss.label_smoothing)
    return batch['mix_weight'] * losses + (1 - batch['mix_weight']) * mixed_in


def evaluate(model: nn.Module, variables: Mapping[str, Any], batch: Batch,
             config: ConfigDict) -> tuple[Metrics, None]:
    """The plain cross-entropy and the errors of a batch; see `Task.evaluate`."""
    del config
    logits: Any = model.apply(variables, batch['image'], train=False)
    return Metrics.of_batch(logits, batch, cross_entropy(logits, batch['label'], 0.0)), None


def train_report(metrics: Metrics) -> dict[str, float]:
    """Loss and top-1 error in percent, over the images of some steps."""
    values = metrics.report()
    return {name: values[name] for name in ('loss', 'top1_error')}


def report(metrics: Metrics, outputs: None, config: ConfigDict) -> dict[str, float]:
    """Loss, top-1 and top-5 error in percent, and the number of images."""
    del outputs, config
    return metrics.report()


def line(values: Mapping[str, float]) -> str:
    """Formats values, as in 'loss 0.0709  top-1 error 1.68 %'."""
    if 'top5_error' not in values:
        return f'loss {values["loss"]:.4f}  top-1 error {values["top1_error"]:6.2f} %'
    return (f'loss {values["loss"]:.4f}  top-1 error {values["top1_error"]:.2f} %  '
            f'top-5 error {values["top5_error"]:.2f} %')


def watched(metrics: Metrics) -> jax.Array:
    """The top-1 error in percent, float32 []; 0 without images."""
    error = metrics.top1_error
    return 100 * error.total / jnp.maximum(error.count, 1)


def complete(config: ConfigDict) -> ConfigDict:
    """Fills in `model.num_classes` from the data, where it is not set.

    Raises:
      UserError: all images of the data are of one class, or it is missing.
    """
    if config.model.num_classes is not None:
        return config
    config = config.copy_and_resolve_references()
    config.model.num_classes = data.count_classes(config)
    if config.model.num_classes == 1:
        raise UserError(f'the data in {config.data.path} has a single class; classification needs '
                        'at least two, each in a folder of its own.')
    return config


def check(config: ConfigDict, train: data.Source, test: data.Source) -> None:
    """Raises UserError if the data and the network differ in their number of classes."""
    known = config.model.num_classes
    trained, tested = data.num_classes(train), data.num_classes(test)
    if trained != known or tested > known:
        raise UserError(f'{config.data.source} has {max(trained, tested)} classes, but '
                        f'model.num_classes is {known}.')


TASK = Task(
    loss=loss,
    evaluate=evaluate,
    train_report=train_report,
    report=report,
    headline=Headline('eval/top1_error', 'top-1 error', ' %'),
    line=line,
    watched=watched,
    load=classifier.load,
    complete=complete,
    check=check,
    test=protocols.test,
    test_options=('protocol', 'resize', 'scales', 'batch_size', 'confusion'),
    predictor=prediction.predictor,
    exports={'.safetensors': lambda network, flags: weights.to_torchvision(network),
             '.stablehlo': stablehlo},
)
