"""ImageNet localization as a task: the per-class region proposal network of appendix C.

The network keeps the classifier's head, which is trained along, so that it names classes itself;
the paper takes them from a classifier of its own.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from resnet_jax import data
from resnet_jax.data import Batch
from resnet_jax.models import localizer as models
from resnet_jax.models.localizer import Localizer
from resnet_jax.models.rcnn import per_image
from resnet_jax.tasks import summed
from resnet_jax.tasks.classification import task as classification
from resnet_jax.tasks.classification.metrics import cross_entropy
from resnet_jax.tasks.localization import losses, metrics, predictor, testing
from resnet_jax.tasks.localization.transforms import transforms
from resnet_jax.tasks.task import Headline, Task

LOSSES = ('class_loss', 'score_loss', 'box_loss')


def loss(model: Localizer, variables: Mapping[str, Any], batch: Batch, key: jax.Array,
         config: ConfigDict) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """The losses of the class, and of the anchors of the true class; see `Task.loss`.

    Args:
      model, variables: the network.
      batch: see `transforms.Augment`.
      key: unused.
      config: `loss.label_smoothing` is read.
    """
    del key
    number = model.settings.anchors_per_image

    def run(module):
        features = module.last_map(batch['image'], train=True)
        outputs = module.localizer(features, batch['label'][:, None])
        return module.classify(features), *(x[:, 0] for x in outputs), module.anchors(features)

    (logits, scores, deltas, anchors), updates = nn.apply(
        run, model, mutable=['batch_stats'])(variables)
    with jax.named_scope('sampling'):
        rows = {name: batch[name] for name in ('boxes', 'present', 'draws')}
        drawn, index = per_image(model, lambda rows: losses.draw(number, anchors, rows))(rows)
    with jax.named_scope('loss'):
        parts = (cross_entropy(logits, batch['label'], config.loss.label_smoothing),
                 *losses.anchor_losses(number, scores, deltas, anchors, drawn, index,
                                       batch['boxes']))
    sums = summed.losses(dict(zip(LOSSES, parts, strict=True)), batch['mask'])
    return sums['loss'], updates.get('batch_stats', {}), sums


def evaluate(model: Localizer, variables: Mapping[str, Any], batch: Batch,
             config: ConfigDict) -> tuple[dict[str, Any], None]:
    """The errors of a batch, of a single crop of each image; see `metrics.sums`."""
    del config

    def run(module):
        features = module.last_map(batch['image'], train=False)
        found = module.locate(features, batch['label'][:, None], batch['frames'])
        return module.classify(features), found.boxes

    logits, boxes = nn.apply(run, model)(variables)
    return compared(model, logits, boxes, batch), None


def compared(model: Localizer, logits: jax.Array, boxes: jax.Array,
             batch: Batch) -> dict[str, Any]:
    """The sums of `metrics.sums` for class scores [N, K] and boxes of the true class [N, 1, 4]."""
    most = min(metrics.TOP_K, model.num_classes)
    classes = per_image(model, lambda logits: jax.lax.top_k(logits, most)[1])(logits)
    overlap = metrics.best_iou(boxes, batch['boxes'], batch['present'])[:, 0]
    return metrics.sums(batch['label'], classes, overlap, batch['mask'])


def report(sums: Mapping[str, Any], outputs: None, config: ConfigDict) -> dict[str, float]:
    """Errors and the mean IoU in percent, and the number of images."""
    del outputs, config
    return metrics.report(jax.device_get(dict(sums)))


def check(config: ConfigDict, train: data.Source, test: data.Source) -> None:
    """Raises UserError if the data has other classes, or the augmentation cannot be had."""
    classification.check(config, train, test)
    summed.check_schedule(config)


TASK = Task(
    loss=loss,
    evaluate=evaluate,
    train_report=summed.train_report,
    report=report,
    headline=Headline('eval/localization_error', 'localization error', ' %'),
    line=metrics.line,
    watched=summed.watched,
    load=predictor.load,
    create_model=models.create,
    transforms=transforms,
    complete=classification.complete,
    check=check,
    test=testing.test,
    test_options=('protocol', 'scales', 'batch_size'),
    predictor=predictor.predictor,
    heads=models.HEADS,
)
