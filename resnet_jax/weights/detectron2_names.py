"""detectron2's Faster and Mask R-CNN, C4 and with a feature pyramid: names, and how to use them.

The tensors keep detectron2's names here. What its configs say beyond them is that of its model zoo:
https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import rcnn
from resnet_jax.weights import resnet_names
from resnet_jax.weights.coco_names import CATEGORIES, UNUSED
from resnet_jax.weights.foreign import Foreign, Tensors, register

MEAN = (103.53, 116.28, 123.675)  # MODEL.PIXEL_MEAN, in blue, green and red, in grey levels
STD = (1.0, 1.0, 1.0)  # MODEL.PIXEL_STD; the weights of the authors divide by nothing
C4, PYRAMID = 'detectron2 c4', 'detectron2 fpn'  # as keys of `foreign.FAMILIES`

_PREDICTOR = 'roi_heads.box_predictor.cls_score.weight'
_NORMAL = 'pixel_mean', 'pixel_std'
_ANCHORS = 'proposal_generator.anchor_generator.cell_anchors.'
_RPN = 'proposal_generator.rpn_head.'
_MODULES = {
    'rpn/conv': f'{_RPN}conv', 'rpn/score': f'{_RPN}objectness_logits',
    'rpn/delta': f'{_RPN}anchor_deltas', 'hidden/fc6': 'roi_heads.box_head.fc1',
    'hidden/fc7': 'roi_heads.box_head.fc2', 'box/score': 'roi_heads.box_predictor.cls_score',
    'box/delta': 'roi_heads.box_predictor.bbox_pred', 'mask/deconv': 'roi_heads.mask_head.deconv',
    'mask/score': 'roi_heads.mask_head.predictor',
    **{f'mask/conv{i}': f'roi_heads.mask_head.mask_fcn{i}' for i in range(1, 5)},
}
_TO_TORCH = (  # of a body without its prefix
    (re.compile(r'^stem\.conv1\.norm\.'), 'bn1.'), (re.compile(r'^stem\.conv1\.'), 'conv1.'),
    (re.compile(r'^res(\d)\.'), lambda found: f'layer{int(found[1]) - 1}.'),
    (re.compile(r'\.conv(\d)\.norm\.'), r'.bn\1.'),
    (re.compile(r'\.shortcut\.norm\.'), '.downsample.1.'),
    (re.compile(r'\.shortcut\.'), '.downsample.0.'))
_FROM_TORCH = (
    (re.compile(r'^bn1$'), 'stem.conv1.norm'), (re.compile(r'^conv1$'), 'stem.conv1'),
    (re.compile(r'^layer(\d)\.'), lambda found: f'res{int(found[1]) + 1}.'),
    (re.compile(r'\.bn(\d)$'), r'.conv\1.norm'), (re.compile(r'\.downsample\.0$'), '.shortcut'),
    (re.compile(r'\.downsample\.1$'), '.shortcut.norm'))


def _renamed(name: str, patterns) -> str:
    for pattern, new in patterns:
        name = pattern.sub(new, name)
    return name


def _naming(names):
    if f'{_RPN}conv.weight' not in names:
        return None
    if _PREDICTOR not in names:
        raise UserError('of the networks of detectron2, Faster and Mask R-CNN can be read, which '
                        f'have a {_PREDICTOR}.')
    return str, 'detectron2'


def _body(kind: str, tensors: Tensors) -> dict[str, str]:
    """detectron2's names of the tensors of the body, by those of torchvision."""
    prefixes = ('backbone.bottom_up.',) if kind == 'fpn' else ('backbone.', 'roi_heads.')
    found = {}
    for name in tensors:
        for prefix in prefixes:
            bare = name.removeprefix(prefix)
            if bare != name and re.match(r'stem\.|res\d\.', bare):
                found[_renamed(bare, _TO_TORCH)] = name
    return found


def _fields(kind: str, tensors: Tensors, original: Mapping[str, str]) -> dict[str, Any]:
    wanted = {'rpn_features': f'{_RPN}conv.weight'}
    if kind == 'fpn':
        wanted |= {'neck_features': 'backbone.fpn_output2.weight',
                   'box_features': 'roi_heads.box_head.fc2.weight'}
    for name in wanted.values():
        if name not in tensors:
            raise UserError(f'this is a network of detectron2, but not Faster or Mask R-CNN of its '
                            f'model zoo: it has no {name}.')
    widths = {field: len(tensors[name]) for field, name in wanted.items()}
    deconv = tensors.get('roi_heads.mask_head.deconv.weight')
    masks = {} if deconv is None else {'masks': True, 'mask_features': deconv.shape[1]}
    body = _body(kind, tensors)
    network = resnet_names.fields(
        {**{new: tensors[name] for new, name in body.items()},
         'fc.weight': np.zeros((len(tensors[_PREDICTOR]) - 1, 1), np.float32)},
        {new: original[name] for new, name in body.items()})
    if network['family'] != 'imagenet':
        raise UserError('the body of the detector must be a network for ImageNet.')
    # All proposals of a level are pooled with as many points as it takes, up to eight.
    return {**network, 'bn_epsilon': 1e-5, 'detector': {
        'kind': kind, 'preset': 'detectron2', 'roi_points': 0, **widths, **masks}}


def _tensors_of(kind: str, module: tuple[str, ...], blocks: int,
                config: Mapping[str, Any]) -> tuple[str, ...]:
    part, *inner = module
    if part == 'neck':
        name, number = re.fullmatch(r'([a-z]+)(\d+)', inner[0]).groups()
        return (f'backbone.fpn_{name}{int(number) + 1}',)
    if name := _MODULES.get('/'.join(module)):
        return (name,)
    prefix = ('backbone.bottom_up.' if kind == 'fpn' else
              'roi_heads.' if part == 'stage4' else 'backbone.')
    return tuple(prefix + _renamed(name, _FROM_TORCH)
                 for name in resnet_names.tensors_of(module, blocks, config))


def _unpacked(first: str, tensors: Tensors) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors for images with red first, and what is taken from these.

    Anchors follow from the settings, and colours that the file does not hold are those of the
    model zoo. The mean of an image is largest in red, which tells which colour comes first.
    """
    kept = {name: tensor for name, tensor in tensors.items()
            if name not in _NORMAL and not name.startswith(_ANCHORS)}
    mean, std = (np.asarray(tensors.get(name, default)).ravel()
                 for name, default in zip(_NORMAL, (MEAN, STD), strict=True))
    if mean.shape != (3,) or std.shape != (3,):
        raise UserError('pixel_mean and pixel_std must have three numbers each.')
    if mean[0] <= mean[2]:
        kept[first] = kept[first][:, ::-1]
        mean, std = mean[::-1], std[::-1]
    return kept, {'model': {'stride_in': 'v1'}, 'mean': mean / 255, 'std': std / 255}


def _assumed(config: Mapping[str, Any], stride_given: bool) -> tuple[str, ...]:
    return (*resnet_names.assumed_stride(config, stride_given),
            'what the configs of detectron2\'s model zoo say of anchors, pooling and suppression')


def _classes(count: int) -> tuple[str, ...] | None:
    names = tuple(name for name in CATEGORIES if name != UNUSED)
    return names if count == len(names) else None


def _register(name: str, kind: str, stem: str, mark: str, title: str) -> None:
    first = f'{stem}.conv1.weight'
    register(name, Foreign(
        naming=_naming, recognises=lambda tensors: {_PREDICTOR, mark} <= set(tensors),
        fields=functools.partial(_fields, kind), tensors_of=functools.partial(_tensors_of, kind),
        image_size=((800, 1344), None), timm='', first=(first,), assumed=_assumed,
        flattened=('fc6',), create=rcnn.of_fields, transposed=('deconv',), classes=_classes,
        title=title, unpacked=functools.partial(_unpacked, first),
        config={'task': 'detection', 'data.short_sides': (800,), 'data.long_side': 1333,
                'data.canvases': ((1344, 800),)}))


_register(C4, 'c4', 'backbone.stem', 'roi_heads.res5.0.conv1.weight', ' in Faster R-CNN, C4')
_register(PYRAMID, 'fpn', 'backbone.bottom_up.stem', 'backbone.fpn_lateral2.weight',
          ' in Faster R-CNN with a feature pyramid')
