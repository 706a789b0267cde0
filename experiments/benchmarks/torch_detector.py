"""Faster R-CNN assembled from torchvision's parts, for the benchmarks to compare with.

The same architecture as `resnet_jax.models.rcnn` with the preset 'torchvision': torchvision has no
"C4" of its own. Imports nothing from the project.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torchvision import models
from torchvision.models.detection import FasterRCNN, backbone_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

TRAINED = 3  # stages; the stem and stage 1 are frozen, as in torchvision
NAMES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
         'var': 'running_var'}
HEADS = {'rpn/conv': 'rpn.head.conv.0.0', 'rpn/score': 'rpn.head.cls_logits',
         'rpn/delta': 'rpn.head.bbox_pred', 'box/score': 'roi_heads.box_predictor.cls_score',
         'box/delta': 'roi_heads.box_predictor.bbox_pred'}

FPN_HEADS = {
    'hidden/fc6': 'roi_heads.box_head.fc6', 'hidden/fc7': 'roi_heads.box_head.fc7',
    **{f'neck/{ours}{i + 1}': f'backbone.fpn.{theirs}_blocks.{i}.0' for i in range(4)
       for ours, theirs in (('lateral', 'inner'), ('output', 'layer'))}}


class Trunk(nn.Sequential):
    """The stem and the stages 1 to 3 of a residual network."""

    def __init__(self, resnet: models.ResNet):
        super().__init__(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1,
                         resnet.layer2, resnet.layer3)
        self.out_channels = resnet.fc.in_features // 2


def faster_rcnn(weights: Mapping[str, np.ndarray], depth: int, num_classes: int, stride_in: str,
                proposals: int, regions: int) -> FasterRCNN:
    """The network whose last stage runs on every region ("C4").

    Args:
      weights: by the paths of `resnet_jax.models.rcnn.FasterRCNN`.
      depth: 18, 34, 50, 101 or 152.
      num_classes: without background.
      stride_in: where bottlenecks have their stride, 'v1' or 'v1.5'.
      proposals: of an image, in an evaluation.
      regions: of an image, that are trained.
    """
    resnet = _resnet(weights, depth)
    if stride_in == 'v1' and depth >= 50:
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    network = FasterRCNN(
        Trunk(resnet),
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_post_nms_top_n_test=proposals, box_batch_size_per_image=regions,
        box_roi_pool=MultiScaleRoIAlign(['0'], 14, 2),
        box_head=nn.Sequential(resnet.layer4, nn.AdaptiveAvgPool2d(1)),
        box_predictor=FastRCNNPredictor(resnet.fc.in_features, num_classes + 1))
    _copy_heads(network, weights, HEADS)
    return network


def fpn(weights: Mapping[str, np.ndarray], num_classes: int, proposals: int,
        regions: int) -> FasterRCNN:
    """torchvision's fasterrcnn_resnet50_fpn with frozen batch normalisation.

    Args:
      weights: by the paths of `resnet_jax.models.fpn.FasterRCNNFPN`; or of a network without a
        pyramid, with heads and pyramid at random and numbers of regions as in torchvision.
      num_classes, proposals, regions: as in `faster_rcnn`.
    """
    torch.manual_seed(0)
    backbone = backbone_utils._resnet_fpn_extractor(_resnet(weights, 50), TRAINED)
    if 'neck/lateral1/kernel' not in weights:
        return FasterRCNN(backbone, num_classes + 1)
    network = FasterRCNN(backbone, num_classes + 1, rpn_post_nms_top_n_test=proposals,
                         box_batch_size_per_image=regions)
    _copy_heads(network, weights, HEADS | FPN_HEADS)
    return network


def run(network: FasterRCNN, images: torch.Tensor, targets=None):
    """Detections and losses of normalised images that keep their size.

    Args:
      network: a detector.
      images: float32 [N, 3, H, W].
      targets: in training, as torchvision takes them.
    """
    sizes = [tuple(images.shape[2:])] * len(images)
    maps = network.backbone(images)
    maps = {'0': maps} if isinstance(maps, torch.Tensor) else maps
    proposals, losses = network.rpn(ImageList(images, sizes), maps, targets)
    detections, more = network.roi_heads(maps, proposals, sizes, targets)
    return detections, losses | more


def part(network: FasterRCNN, name: str, images: torch.Tensor, targets, regions: int):
    """A part of `faster_rcnn` on its own: a function that returns tensors, and its arguments.

    Args:
      network: of `faster_rcnn`.
      name: one of those in `detection.py`.
      images, targets: see `run`.
      regions: that RoIAlign and the last stage work on in training.
    """
    rpn, heads, train = network.rpn, network.roi_heads, network.training
    sizes = [tuple(images.shape[2:])] * len(images)
    with torch.no_grad():
        features = network.backbone(images)
        anchors = rpn.anchor_generator(ImageList(images, sizes), [features])
        scores, deltas = (x[0].permute(0, 2, 3, 1) for x in rpn.head([features]))
        scores, deltas = scores.reshape(1, -1, 1), deltas.reshape(-1, 4)

    def choose(scores, deltas):
        boxes = rpn.box_coder.decode(deltas, anchors).view(1, -1, 4)
        return rpn.filter_proposals(boxes, scores, sizes, [len(deltas)])[0]

    def pool(features):
        return heads.box_roi_pool({'0': features}, boxes, sizes)

    with torch.no_grad():
        boxes = [x[:regions] if train else x for x in choose(scores, deltas)]
        pooled = pool(features)
        outputs = heads.box_predictor(heads.box_head(pooled))
    if train:
        features, pooled = features.requires_grad_(), pooled.requires_grad_()
    return {
        'trunk': (network.backbone, (images,)),
        'proposal network': (lambda x: tuple(y[0] for y in rpn.head([x])), (features,)),
        'matching of anchors': (lambda: rpn.fg_bg_sampler(
            rpn.assign_targets_to_anchors(anchors, targets)[0])[0][0], ()),
        'choice of proposals': (lambda *x: torch.tensor([len(y) for y in choose(*x)]),
                                (scores, deltas)),
        'RoIAlign': (pool, (features,)),
        'last stage': (lambda x: heads.box_head(x).flatten(1), (pooled,)),
        'choice of detections': (lambda *x: torch.cat(
            heads.postprocess_detections(*x, boxes, sizes)[1]), outputs),
    }[name]


def _resnet(weights: Mapping[str, np.ndarray], depth: int) -> models.ResNet:
    resnet = models.get_model(f'resnet{depth}', norm_layer=FrozenBatchNorm2d)
    tensors = {}
    for path, value in weights.items():
        if path.startswith(('rpn', 'box', 'neck', 'hidden')):
            continue
        module, kind = path.rsplit('/', 1)
        module = module.replace('shortcut/conv', 'downsample.0').replace(
            'shortcut/norm', 'downsample.1').replace('norm', 'bn')
        module = re.sub('^stem/(conv|bn)', r'\g<1>1', module).replace('stage', 'layer')
        if '/blocks/' in module:
            for i, part in enumerate(value, 1):
                name = module.replace('/blocks/', f'.{i}.').replace('/', '.')
                tensors[f'{name}.{NAMES[kind]}'] = torch.tensor(_torch_layout(part))
        else:
            name = module.replace('/block1/', '.0.').replace('/', '.')
            tensors[f'{name}.{NAMES[kind]}'] = torch.tensor(_torch_layout(value))
    missing = resnet.load_state_dict(tensors, strict=False)
    if missing.missing_keys != ['fc.weight', 'fc.bias'] or missing.unexpected_keys:
        raise ValueError(f'the weights do not fit: {missing}')
    for name, parameter in resnet.named_parameters():
        parameter.requires_grad_(not name.startswith(('conv1', 'bn1', 'layer1')))
    return resnet


def _copy_heads(network: FasterRCNN, weights: Mapping[str, np.ndarray],
                modules: Mapping[str, str]) -> None:
    """Copies weights into the modules of these names."""
    with torch.no_grad():
        for name, module in modules.items():
            for kind in ('kernel', 'bias'):
                value = _torch_layout(weights[f'{name}/{kind}'])
                if name.startswith('box'):  # the background is first here, and has a box as well
                    value = np.concatenate([value[-1:], value[:-1]] if name == 'box/score' else
                                           [np.zeros_like(value[:4]), value])
                parameter = network.get_parameter(f'{module}.{NAMES[kind]}')
                parameter.copy_(torch.tensor(value).reshape(parameter.shape))


def _torch_layout(value: np.ndarray) -> np.ndarray:
    """Kernels HWIO -> OIHW and IO -> OI; biases and statistics as they are."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T if value.ndim == 2 else value
