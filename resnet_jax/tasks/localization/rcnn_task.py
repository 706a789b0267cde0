"""The second step of ImageNet localization as a task: an R-CNN on proposals (appendix C).

It starts from a network of the task 'localization', which proposes boxes and names classes, and
which is not trained any more.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from resnet_jax.data import Batch
from resnet_jax.models import localizer_rcnn as models
from resnet_jax.models.localizer_rcnn import LocalizerRCNN
from resnet_jax.models.rcnn import per_image
from resnet_jax.tasks import summed
from resnet_jax.tasks.localization import rcnn
from resnet_jax.tasks.localization import task as localization
from resnet_jax.tasks.localization.parts import parts

LOSSES = ('score_loss', 'box_loss')


def loss(model: LocalizerRCNN, variables: Mapping[str, Any], batch: Batch, key: jax.Array,
         config: ConfigDict) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """The losses of a region of every image, for the true class; see `Task.loss`.

    Args:
      model, variables: the network.
      batch: see `transforms.Augment`.
      key, config: unused.
    """
    del key, config

    def propose(module):
        features = module.last_map(batch['image'], train=False)
        return module.propose(features, batch['label'][:, None], batch['frames'])[:, 0]

    proposals = jax.lax.stop_gradient(nn.apply(propose, model)(variables))
    with jax.named_scope('sampling'):
        rows = {name: batch[name] for name in ('boxes', 'present', 'draws')}
        drawn = per_image(model, lambda rows: rcnn.draw(*rows))((proposals, rows))
        crops = models.warp(batch['image'], drawn['region'][:, None], model.settings.crop_size)
    (scores, deltas), updates = model.apply(
        variables, crops[:, 0], batch['label'], train=True, method='judge',
        mutable=['batch_stats'])
    with jax.named_scope('loss'):
        parts = rcnn.region_losses(scores, deltas, drawn)
    sums = summed.losses(dict(zip(LOSSES, parts, strict=True)), batch['mask'])
    return sums['loss'], updates.get('batch_stats', {}), sums


def evaluate(model: LocalizerRCNN, variables: Mapping[str, Any], batch: Batch,
             config: ConfigDict) -> tuple[dict[str, Any], None]:
    """The errors of a batch, of a single crop of each image; see `metrics.sums`.

    An answer is right if the true class is among the predicted ones and its box is right, so the
    proposals of the true class alone are judged.
    """
    del config

    def run(module):
        features = module.last_map(batch['image'], train=False)
        return features, module.classify(features)

    features, logits = nn.apply(run, model)(variables)
    found = rcnn.judged(model, variables, batch['image'], features, batch['label'][:, None],
                        batch['frames'])
    return localization.compared(model, logits, found.boxes, batch), None


def complete(config: ConfigDict) -> ConfigDict:
    """See `localization`; and freezes the proposal network."""
    config = localization.TASK.complete(config)
    if models.PROPOSER not in config.init.freeze:
        config = config.copy_and_resolve_references()
        config.init.freeze = (*config.init.freeze, models.PROPOSER)
    return config


TASK = dataclasses.replace(
    localization.TASK,
    loss=loss,
    evaluate=evaluate,
    create_model=models.create,
    complete=complete,
    heads=models.HEADS,
    started=models.started,
    parts=parts,
)
