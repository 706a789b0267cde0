"""Object detection as a task: Faster R-CNN, with COCO's or VOC's average precision."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import data
from resnet_jax.data import Batch, Normalization
from resnet_jax.data.normalization import normalize
from resnet_jax.data.objects import EvalTransform, TrainTransform, canvas_of, groups
from resnet_jax.data.sizes import pair
from resnet_jax.errors import UserError
from resnet_jax.models import cascade, rcnn
from resnet_jax.models.rcnn import FasterRCNN
from resnet_jax.tasks import summed
from resnet_jax.tasks.classification import task as classification
from resnet_jax.tasks.detection import detector, inference, losses, metrics, parts, protocols
from resnet_jax.tasks.detection.stablehlo import stablehlo
from resnet_jax.tasks.task import Headline, Task

DRAWN_FROM = ('boxes', 'classes', 'present', 'ignore', 'size', 'draws')
LOSSES = ('proposal_score_loss', 'proposal_box_loss', 'class_loss', 'box_loss')
MASK_LOSS = 'mask_loss'  # with a mask branch
CASCADE_LOSSES = ('stage5_class_loss', 'stage5_box_loss', 'stage4_mask_loss')  # of five stages


def loss(model: FasterRCNN, variables: Mapping[str, Any], batch: Batch, key: jax.Array,
         config: ConfigDict) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """The losses of Faster R-CNN, also with masks, summed over the images; see `Task.loss`.

    Args:
      model, variables: the network.
      batch: see `resnet_jax.data.objects.Canvas.example`; 'image' is float32 and normalised, and
        'draws' uint32 [N, 2] are the keys by which the anchors and regions of each image are drawn.
      key, config: unused.
    """
    del key, config
    s = model.settings

    def run(module):
        features = module.trunk(batch['image'], train=True)
        scores, deltas = module.rpn(features)
        levels = rcnn.anchors_of(module, features)
        anchors = jnp.concatenate(levels)
        with jax.named_scope('sampling'):
            rows = {name: batch[name] for name in (*DRAWN_FROM, *['masks'] * s.masks)}
            drawn, index = rcnn.per_image(
                module, lambda rows: losses.draw_anchors(s, anchors, rows))(rows)
            proposals = rcnn.propose(module, scores, deltas, levels, batch['size'], train=True)
            regions = rcnn.per_image(module, lambda proposals, rows: losses.draw_regions(
                s, proposals, rows, module.num_classes, module.mask_size))(proposals, rows)

        def outputs_and_losses(regions, boxes):
            if s.masks:
                outputs = module.heads_and_masks(
                    features, boxes, regions.classes[:, :losses.most_positive(s)], batch['size'],
                    train=True)
            else:
                outputs = module.heads(features, boxes, batch['size'], train=True)
            with jax.named_scope('loss'):
                return outputs, (*losses.region_losses(s, outputs[0], outputs[1], regions),
                                 *(losses.mask_loss(s, mask, regions) for mask in outputs[2:]))

        outputs, parts = outputs_and_losses(regions, regions.boxes)
        if s.rounds == 2:
            boxes = cascade.corrected(outputs[0], outputs[1], regions.boxes, batch['size'],
                                      s.box_weights)
            again = rcnn.per_image(module, lambda regions, boxes, rows: losses.corrected_regions(
                s, regions, boxes, rows, module.num_classes, module.mask_size))(
                    regions, jax.lax.stop_gradient(boxes), rows)
            parts += outputs_and_losses(again, boxes)[1]
        with jax.named_scope('loss'):
            return (*losses.anchor_losses(s, scores, deltas, anchors, drawn, index,
                                          batch['boxes']), *parts)

    parts, updates = nn.apply(run, model, mutable=['batch_stats'])(variables)
    names = (*LOSSES, *[MASK_LOSS] * s.masks, *CASCADE_LOSSES * (s.rounds - 1))
    sums = summed.losses(dict(zip(names, parts, strict=True)), batch['mask'])
    return sums['loss'], updates.get('batch_stats', {}), sums


def evaluate(model: FasterRCNN, variables: Mapping[str, Any], batch: Batch,
             config: ConfigDict) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The number of images; their detections and objects, in pixels of the images as they were."""
    del config
    found = inference.detect(model, variables, batch['image'], batch['size'])
    sizes = batch['size'], batch['original']
    masks = {}
    if model.settings.masks:
        masks = {'original': batch['original'], 'found_masks': found.masks,
                 'masks': jnp.packbits(batch['masks'], axis=-1)}  # there are many of them
    return {'count': batch['mask'].sum()}, {
        **masks, 'found_boxes': inference.to_original(found.boxes, *sizes),
        'found_scores': found.scores, 'found_classes': found.classes, 'found': found.valid,
        'boxes': inference.to_original(batch['boxes'], *sizes),
        **{name: batch[name] for name in ('classes', 'ignore', 'areas', 'present', 'id')}}


def report(sums: Mapping[str, Any], outputs: Mapping[str, np.ndarray],
           config: ConfigDict) -> dict[str, float]:
    """The average precision in percent by `config.eval.metric`, and the number of images."""
    values = metrics.average_precision(*metrics.of_outputs(outputs), config)
    values = {name: value for name, value in values.items() if not name.endswith('class_ap')}
    return {**values, 'count': round(float(sums['count']))}


def augment(examples: Batch, key: jax.Array | None, normalization: Normalization) -> Batch:
    """Normalises images on their canvases, and gives each a key in training.

    Args:
      examples: see `resnet_jax.data.objects.Canvas.example`.
      key: of the batch; None in an evaluation.
      normalization: see `normalize`.
    """
    images = inference.blanked(normalize(examples['image'], normalization), examples['size'])
    batch = examples | {'image': images}
    if key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
        batch['draws'] = jax.random.key_data(keys)
    return batch


def transforms(config: ConfigDict) -> dict[str, Any]:
    """See `Task.transforms`."""
    section = config.data
    canvas = canvas_of(section)._replace(masks=bool(config.model.detector.masks))
    trained = canvas
    if section.window is not None:
        trained = canvas._replace(window=pair(section.window),
                                  max_objects=section.window_objects or section.max_objects)
    return {
        'train_transform': TrainTransform(trained, section.flip, tuple(section.short_sides)),
        'eval_transform': EvalTransform(canvas), 'augment': augment,
        'groups': functools.partial(groups, canvas) if len(canvas.sizes) > 1 else None}


def check(config: ConfigDict, train: data.Source, test: data.Source) -> None:
    """Raises UserError if the data has other classes, or more objects than fit."""
    for source in (train, test):
        if data.num_classes(source) != config.model.num_classes:
            raise UserError(f'{config.data.source} has {data.num_classes(source)} classes, but '
                            f'model.num_classes is {config.model.num_classes}.')
        most = getattr(source, 'most_objects', 0)  # blank images have none
        if most > config.data.max_objects:
            raise UserError(f'an image has {most} objects, but data.max_objects is '
                            f'{config.data.max_objects}; pass '
                            f'--config.data.max_objects={most}.')
    if config.data.canvases and config.data.window is not None:
        raise UserError('data.window cannot be used with data.canvases; set one of them.')
    if config.data.canvases and config.steps_per_call > 1:
        raise UserError('steps_per_call must be 1 with data.canvases, as the shapes of batches '
                        f'vary; got {config.steps_per_call}.')
    summed.check_schedule(config)


TASK = Task(
    loss=loss,
    evaluate=evaluate,
    train_report=summed.train_report,
    report=report,
    headline=Headline('eval/ap', 'AP', lower_is_better=False),
    line=metrics.line,
    watched=summed.watched,
    load=detector.load,
    create_model=rcnn.create,
    transforms=transforms,
    complete=classification.complete,
    check=check,
    test=protocols.test,
    test_options=protocols.OPTIONS,
    predictor=detector.predictor,
    parts=parts.parts,
    exports={'.stablehlo': stablehlo,
             '.safetensors': lambda network, flags: detector.safetensors(network)},
    heads=rcnn.HEADS,
)
