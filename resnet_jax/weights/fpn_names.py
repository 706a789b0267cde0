"""torchvision's Faster and Mask R-CNN with a feature pyramid: names, and how to recognise them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import rcnn
from resnet_jax.weights import resnet_names
from resnet_jax.weights.coco_names import CATEGORIES
from resnet_jax.weights.foreign import PYRAMID, Foreign, Tensors, register

_BODY, _SCORE = 'backbone.body.', 'roi_heads.box_predictor.cls_score.weight'
_FIRST = tuple(_BODY + name for name in resnet_names.FIRST)
_MODULES = {
    'rpn/conv': 'rpn.head.conv.0.0', 'rpn/score': 'rpn.head.cls_logits',
    'rpn/delta': 'rpn.head.bbox_pred', 'hidden/fc6': 'roi_heads.box_head.fc6',
    'hidden/fc7': 'roi_heads.box_head.fc7', 'box/score': 'roi_heads.box_predictor.cls_score',
    'box/delta': 'roi_heads.box_predictor.bbox_pred',
    'mask/deconv': 'roi_heads.mask_predictor.conv5_mask',
    'mask/score': 'roi_heads.mask_predictor.mask_fcn_logits',
    **{f'mask/conv{i + 1}': f'roi_heads.mask_head.{i}.0' for i in range(4)},
}
_BLOCKS = {'lateral': 'backbone.fpn.inner_blocks', 'output': 'backbone.fpn.layer_blocks'}
# Older versions, and the files that torchvision offers, have a number or two less.
_OLDER = ((r'^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$', r'\1.0.\2'),
          (r'^(rpn\.head\.conv)\.(weight|bias)$', r'\1.0.0.\2'),
          (r'^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$',
           lambda found: f'roi_heads.mask_head.{int(found[1]) - 1}.0.{found[2]}'))


def _naming(names):
    if _SCORE in names and any(name.startswith(_BODY) for name in names):
        return _newer, 'torchvision'
    return None


def _newer(name: str) -> str:
    for pattern, new in _OLDER:
        name = re.sub(pattern, new, name)
    return name


def _fields(tensors: Tensors, original: Mapping[str, str]) -> dict[str, Any]:
    """The epsilon of frozen batch normalisation does not show; it is that of COCO's weights."""
    widths = {}
    for field, name in (('neck_features', 'backbone.fpn.layer_blocks.0.0.weight'),
                        ('rpn_features', 'rpn.head.conv.0.0.weight'),
                        ('box_features', 'roi_heads.box_head.fc7.weight')):
        if name not in tensors:
            raise UserError(f'this is a detector, but not fasterrcnn_resnet50_fpn or '
                            f'maskrcnn_resnet50_fpn: it has no {name}.')
        widths[field] = len(tensors[name])
    deconv = tensors.get('roi_heads.mask_predictor.conv5_mask.weight')
    masks = {} if deconv is None else {'masks': True, 'mask_features': deconv.shape[1]}
    classes = len(tensors[_SCORE]) - 1
    body = {name.removeprefix(_BODY): tensor for name, tensor in tensors.items()
            if name.startswith(_BODY)}
    network = resnet_names.fields(
        {**body, 'fc.weight': np.zeros((classes, 1), np.float32)},
        {name: original[_BODY + name] for name in body})
    if network['family'] != 'imagenet':
        raise UserError('the body of the detector must be a network for ImageNet.')
    return {**network, 'bn_epsilon': 0.0, 'detector': {
        'kind': 'fpn', 'preset': 'torchvision', 'background_box': True, **widths, **masks}}


def _tensors_of(module: tuple[str, ...], blocks: int, config: Mapping[str, Any]) -> tuple[str, ...]:
    part, *inner = module
    if part == 'neck':
        kind, number = re.fullmatch(r'([a-z]+)(\d+)', inner[0]).groups()
        return (f'{_BLOCKS[kind]}.{int(number) - 1}.0',)
    if name := _MODULES.get('/'.join(module)):
        return (name,)
    if part == 'norm':
        raise UserError("networks with pre-activation cannot be converted as detectors: there are "
                        "no names for their tensors in torchvision's.")
    return tuple(_BODY + name for name in resnet_names.tensors_of(module, blocks, config))


def _assumed(config: Mapping[str, Any], stride_given: bool) -> tuple[str, ...]:
    return (*resnet_names.assumed_stride(config, stride_given),
            f'batch normalisation with epsilon {config["bn_epsilon"]:g}, as in torchvision\'s '
            'weights for COCO (see --bn_epsilon)')


def _classes(count: int) -> tuple[str, ...] | None:
    return CATEGORIES if count == len(CATEGORIES) else None


register(PYRAMID, Foreign(
    naming=_naming, fields=_fields,
    recognises=lambda tensors: _SCORE in tensors and any(name in tensors for name in _FIRST),
    tensors_of=_tensors_of, image_size=((800, 1344), None), timm='', first=_FIRST,
    assumed=_assumed, flattened=('fc6',), create=rcnn.of_fields,
    # The background, with a score, a mask and four deltas, comes first there and last here.
    rolled={'box/score': 1, 'box/delta': 4, 'mask/score': 1}, transposed=('deconv',),
    classes=_classes,
    title=' in Faster R-CNN with a feature pyramid',
    config={'task': 'detection', 'data.short_sides': (800,), 'data.long_side': 1333,
            'data.canvases': ((1344, 800),)}))
