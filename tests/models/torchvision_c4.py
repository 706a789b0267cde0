"""torchvision's Faster R-CNN, assembled as "C4" with random weights, and as our variables.

torchvision has no such model, only its parts: a body up to layer3, 15 anchors on its one map,
RoIAlign of 14x14 bins, and layer4 with a mean as the head of every region.
"""

import collections

import numpy as np
import pytest

from resnet_jax.weights import names
from tests.weights.torch_networks import torch

torchvision = pytest.importorskip(
    'torchvision', reason='parity needs torchvision: pip install .[test-detection]')

from torch import nn  # noqa: E402
from torchvision.models import resnet  # noqa: E402
from torchvision.models.detection import FasterRCNN  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor  # noqa: E402
from torchvision.models.detection.rpn import RPNHead  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign  # noqa: E402

CLASSES = 4  # without background
RPN_FEATURES = 256
BODY = ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3')


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def classifier(depth: int, images: list) -> nn.Module:
    """A ResNet with random weights, and with statistics of whole images, frozen."""
    make = getattr(resnet, f'resnet{depth}')
    live = make(num_classes=CLASSES)
    for module in live.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # of the one batch alone
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.no_grad():
        live.train()(torch.stack([images[0], -images[0]]))
    frozen = make(num_classes=CLASSES, norm_layer=FrozenBatchNorm2d)
    frozen.load_state_dict(live.state_dict())
    return frozen


def detector(depth: int, images: list, proposals: int, seed: int = 0) -> FasterRCNN:
    """A detector that finds many objects of all classes in some images, which it does not resize.

    Args:
      depth: of the ResNet.
      images: float32 tensors [3, height, width]; the sides of the first are multiples of 32, and
        the others have its height and are not wider.
      proposals: after suppression.
      seed: of the weights.
    """
    torch.manual_seed(seed)
    height, width = images[0].shape[1:]
    network = classifier(depth, images)
    backbone = nn.Sequential(collections.OrderedDict(
        (name, getattr(network, name)) for name in BODY))
    channels = network.fc.in_features
    backbone.out_channels = channels // 2
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    model = FasterRCNN(
        backbone, min_size=height, max_size=width, image_mean=(0, 0, 0), image_std=(1, 1, 1),
        rpn_anchor_generator=anchors, rpn_head=RPNHead(channels // 2, 15),
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(['0'], output_size=14, sampling_ratio=2),
        box_head=nn.Sequential(network.layer4, Mean()),
        box_predictor=FastRCNNPredictor(channels, CLASSES + 1)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    calibrate(model, images)
    return model


def outputs_of(model: FasterRCNN, images: list, layers) -> dict:
    """What some layers return in a detection."""
    outputs = {}
    hooks = [layer.register_forward_hook(
        lambda layer, inputs, output: outputs.update({layer: output})) for layer in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    return outputs


def calibrate(model: FasterRCNN, images: list) -> None:
    """Scales the last layers so that their outputs have mean 0 and a known deviation.

    Without it nearly all scores are equal, and no detection has a score above the threshold.
    """
    head, predictor = model.rpn.head, model.roi_heads.box_predictor
    for wanted in ({head.cls_logits: 2.0, head.bbox_pred: 0.3},  # these choose the regions
                   {predictor.cls_score: 2.0, predictor.bbox_pred: 1.0}):
        outputs = outputs_of(model, images, wanted)
        for layer, deviation in wanted.items():
            values = outputs[layer].transpose(0, 1).flatten(1)  # [channels, regions or positions]
            scale = deviation / values.std(1)
            layer.weight *= scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias[:] = scale * (layer.bias - values.mean(1))


def variables(model: FasterRCNN, fields) -> dict:
    """The weights of a detector as variables of ours.

    Args:
      model: from `detector`.
      fields: of `config.model`.
    """
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def below(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()
                if name.startswith(prefix)}

    body = below('backbone.') | {
        f'layer4.{name}': tensor for name, tensor in below('roi_heads.box_head.0.').items()}
    channels = tensors['roi_heads.box_predictor.cls_score.weight'].shape[1]
    no_head = {'fc.weight': np.zeros((CLASSES, channels), np.float32),
               'fc.bias': np.zeros(CLASSES, np.float32)}
    ours = names.from_torch(body | no_head, fields, 3)
    del ours['params']['head']
    rpn = below('rpn.head.')
    ours['params']['rpn'] = {
        new: {'kernel': rpn[f'{old}.weight'].transpose(2, 3, 1, 0), 'bias': rpn[f'{old}.bias']}
        for new, old in (('conv', 'conv.0.0'), ('score', 'cls_logits'), ('delta', 'bbox_pred'))}
    # There the background is class 0, and has deltas as well.
    box = below('roi_heads.box_predictor.')
    ours['params']['box'] = {
        'score': {'kernel': np.roll(box['cls_score.weight'], -1, 0).T,
                  'bias': np.roll(box['cls_score.bias'], -1)},
        'delta': {'kernel': box['bbox_pred.weight'][4:].T, 'bias': box['bbox_pred.bias'][4:]}}
    return ours
