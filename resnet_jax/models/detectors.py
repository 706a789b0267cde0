"""Settings of detectors, with presets after the paper, detectron2 and torchvision."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resnet_jax.models.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What distinguishes one Faster R-CNN from another; the defaults are detectron2's "C4".

    `config.model.detector` has fields of the same names, which override those of a preset. Lengths
    are in pixels of the network's input. "Train, test" pairs have one value for each.

    Attributes:
      kind: 'c4', see `resnet_jax.models.c4`, or 'fpn', see `resnet_jax.models.fpn`.
      anchor_sizes, anchor_ratios, anchor_rule: see `resnet_jax.regions.anchors.base_anchors`. With
        'fpn', one size for each level.
      anchors_outside: whether anchors across the edge of the image are trained.
      rpn_features: filters of the region proposal network's 3x3 layer.
      rpn_pre_nms: (train, test) proposals of each image, and level, before suppression, the best
        ones.
      rpn_post_nms: (train, test) proposals after it.
      rpn_nms: IoU above which a proposal is suppressed.
      rpn_min_size: least width and height of a proposal.
      rpn_batch: anchors of each image that are trained.
      rpn_positive: the largest share of positives among them.
      rpn_thresholds: IoU below which an anchor is negative, and from which it is positive.
      rpn_beta: where the smooth L1 loss becomes linear; 0: L1.
      roi_batch: regions of each image that are trained.
      roi_positive: the largest share of positives among them.
      roi_thresholds: least IoU of a negative region, and of a positive one.
      roi_size: bins of RoIAlign in each direction; the last stage of 'c4' then halves them.
      roi_points: see `resnet_jax.regions.roi_align.roi_align`.
      roi_aligned: the same.
      box_weights: of dx, dy, dw and dh, for regions; see `resnet_jax.regions.boxes.encode`.
      box_beta: as rpn_beta, for regions.
      clip_scales: whether decoded boxes are at most 1000 / 16 times as large as their anchor.
      neck_features: ('fpn' only) filters of each level of the pyramid.
      box_features: ('fpn' only) outputs of the two dense layers that describe a region.
      background_box: whether the network also has corrections and masks for background, which are
        not used; torchvision's networks do.
      context: the whole image as one more region, whose features are joined to those of every
        region ("global context", appendix B).
      masks: whether there is a mask branch; see `resnet_jax.models.masks`.
      mask_layers: 3x3 layers at its beginning.
      mask_features: filters of its hidden layers.
      mask_rounding: whether a cell's target is 1 if the object covers at least half of it, and 0
        otherwise, as in detectron2; if not, it is the covered share, as in torchvision.
      cascade: 3 or 5: the stages of a cascade of boxes, masks and classes, see
        `resnet_jax.models.cascade`; 0: masks and classes do not depend on each other.
      score_threshold: least score of a detection.
      nms: IoU above which a detection suppresses others of its class.
      detections: the most detections in an image.
    """

    kind: str = 'c4'
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_rule: str = 'detectron2'
    anchors_outside: bool = True
    rpn_features: int = 1024
    rpn_pre_nms: tuple[int, int] = (2000, 6000)
    rpn_post_nms: tuple[int, int] = (2000, 1000)
    rpn_nms: float = 0.7
    rpn_min_size: float = 0.0
    rpn_batch: int = 256
    rpn_positive: float = 0.5
    rpn_thresholds: tuple[float, float] = (0.3, 0.7)
    rpn_beta: float = 0.0
    roi_batch: int = 512
    roi_positive: float = 0.25
    roi_thresholds: tuple[float, float] = (0.0, 0.5)
    roi_size: int = 14
    roi_points: int = 2
    roi_aligned: bool = True
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_beta: float = 0.0
    clip_scales: bool = True
    neck_features: int = 256
    box_features: int = 1024
    background_box: bool = False
    context: bool = False
    masks: bool = False
    mask_layers: int = 0
    mask_features: int = 256
    mask_rounding: bool = True
    cascade: int = 0
    score_threshold: float = 0.05
    nms: float = 0.5
    detections: int = 100

    @property
    def rounds(self) -> int:
        """How often each region is classified."""
        return 2 if self.cascade == 5 else 1


PRESETS = {
    # detectron2's Base-RCNN-C4, but 2000 proposals before suppression in training, not 12000.
    'detectron2': Settings(),
    # py-faster-rcnn, with the anchors for VOC; for COCO there is one of 64 pixels in addition.
    'paper': Settings(
        anchor_sizes=(128, 256, 512), anchor_rule='paper', anchors_outside=False, rpn_features=512,
        rpn_pre_nms=(12_000, 6_000), rpn_post_nms=(2_000, 300), rpn_min_size=16.0, rpn_beta=1 / 9,
        roi_batch=128, roi_thresholds=(0.1, 0.5), box_beta=1.0, clip_scales=False, nms=0.3),
    # The settings of its FasterRCNN; 'c4' has them on a single feature map.
    'torchvision': Settings(
        anchor_rule='torchvision', rpn_features=256, rpn_pre_nms=(2000, 1000),
        rpn_post_nms=(2000, 1000), rpn_min_size=1e-3, rpn_beta=1 / 9, roi_aligned=False,
        box_beta=1 / 9, mask_rounding=False),
}
# What differs in all presets for a feature pyramid, as in detectron2 and torchvision.
PYRAMID: dict[str, Any] = {'rpn_features': 256, 'rpn_pre_nms': (2000, 1000), 'roi_size': 7,
           'mask_layers': 4}
AT_LEAST_1 = ('rpn_features', 'rpn_batch', 'roi_batch', 'roi_size', 'neck_features',
              'box_features', 'mask_features', 'detections')
SHARES = ('rpn_nms', 'rpn_positive', 'roi_positive', 'nms')
NOT_NEGATIVE = ('rpn_min_size', 'rpn_beta', 'roi_points', 'box_beta', 'mask_layers',
                'score_threshold')
PAIRS_OF_COUNTS = ('rpn_pre_nms', 'rpn_post_nms')
PAIRS_OF_SHARES = ('rpn_thresholds', 'roi_thresholds')


def settings(section: Mapping[str, Any], num_stages: int) -> Settings:
    """The settings of `config.model.detector`: a preset, and the fields that override it.

    Args:
      section: `config.model.detector`.
      num_stages: of the network.

    Raises:
      ConfigError: a field is out of its range; the sentence names the field and the range.
    """
    if section['preset'] not in PRESETS:
        raise ConfigError(f'model.detector.preset must be one of {", ".join(PRESETS)}, '
                          f'got {section["preset"]!r}.')
    names = [field.name for field in dataclasses.fields(Settings)]
    given: dict[str, Any] = {name: section[name] for name in names if section[name] is not None}
    given = {name: tuple(value) if isinstance(value, list) else value
             for name, value in given.items()}
    preset = PRESETS[section['preset']]
    if given['kind'] == 'fpn':
        preset = dataclasses.replace(preset, **PYRAMID)
    result = dataclasses.replace(preset, **given)
    for name in names:
        if problem := _problem(name, getattr(result, name)):
            raise ConfigError(f'model.detector.{name} must be {problem}, got '
                              f'{getattr(result, name)!r}.')
    if result.kind == 'fpn' and len(result.anchor_sizes) != num_stages + 1:
        raise ConfigError(f'model.detector.anchor_sizes must be {num_stages + 1} sizes with '
                          f'model.detector.kind=fpn, one for each level, got '
                          f'{result.anchor_sizes!r}.')
    if result.cascade and (result.kind != 'c4' or not result.masks):
        raise ConfigError(f'model.detector.cascade={result.cascade} needs '
                          'model.detector.kind=c4 and model.detector.masks=True.')
    return result


def _problem(name: str, value: Any) -> str | None:
    """What a field must be, if its value is something else."""
    if name == 'kind':
        return None if value in ('c4', 'fpn') else 'one of c4, fpn'
    if name == 'cascade':
        return None if value in (0, 3, 5) else '0, 3 or 5 stages'
    if name == 'anchor_rule':
        rules = ('detectron2', 'torchvision', 'paper')
        return None if value in rules else 'one of ' + ', '.join(rules)
    if name in ('anchor_sizes', 'anchor_ratios'):
        good = _is_numbers(value) and len(value) > 0 and all(x > 0 for x in value)
        return None if good else 'positive numbers, such as (32, 64)'
    if name in PAIRS_OF_COUNTS:
        good = _is_numbers(value, int) and len(value) == 2 and min(value) >= 1
        return None if good else 'two numbers of at least 1, for training and for testing'
    if name in PAIRS_OF_SHARES:
        good = _is_numbers(value) and len(value) == 2 and 0 <= value[0] <= value[1] <= 1
        return None if good else 'two numbers from 0 to 1, the smaller one first'
    if name == 'box_weights':
        good = _is_numbers(value) and len(value) == 4 and all(x > 0 for x in value)
        return None if good else 'four positive numbers'
    if name in AT_LEAST_1:
        return None if value >= 1 else 'at least 1'
    if name in SHARES:
        return None if 0 <= value <= 1 else 'from 0 to 1'
    if name in NOT_NEGATIVE:
        return None if value >= 0 else 'at least 0'
    return None


def _is_numbers(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, (tuple, list)) and all(
        isinstance(x, kind) and not isinstance(x, bool) for x in value)
