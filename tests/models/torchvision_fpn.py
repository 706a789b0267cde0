"""torchvision's fasterrcnn_resnet50_fpn with random weights, whose detections ours must equal."""

import collections

import pytest

from tests.weights.torch_networks import torch

torchvision = pytest.importorskip(
    'torchvision', reason='parity needs torchvision: pip install .[test-detection]')

from torch import nn  # noqa: E402
from torchvision.models import detection  # noqa: E402
from torchvision.models.detection._utils import overwrite_eps  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402


def padded(images: list) -> 'torch.Tensor':
    """Images [3, height, width] in the upper left corners of one batch of zeros."""
    height, width = (-(-max(x.shape[axis] for x in images) // 32) * 32 for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    for image, place in zip(images, batch, strict=True):
        place[:, :image.shape[1], :image.shape[2]] = image
    return batch


def detector(images: list, proposals: int, classes: int = 90, seed: int = 0,
             masks: bool = False) -> nn.Module:
    """A detector, with normalisation frozen as in the weights for COCO.

    Args:
      images: float32 tensors [3, height, width], normalised. The detector does not resize images,
        and finds many objects of many classes in these.
      proposals: after suppression.
      classes: without background.
      seed: of the weights.
      masks: whether it is maskrcnn_resnet50_fpn.
    """
    torch.manual_seed(seed)
    create = detection.maskrcnn_resnet50_fpn if masks else detection.fasterrcnn_resnet50_fpn
    live = create(
        weights=None, weights_backbone=None, num_classes=classes + 1)
    for module in live.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # of the one batch alone
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.no_grad():
        live.backbone.body.train()(padded(images))
    backbone = resnet_fpn_backbone(
        backbone_name='resnet50', weights=None, norm_layer=FrozenBatchNorm2d)
    kind = detection.MaskRCNN if masks else detection.FasterRCNN
    model = kind(backbone, classes + 1, rpn_post_nms_top_n_test=proposals,
                 image_mean=(0, 0, 0), image_std=(1, 1, 1)).eval()
    model.load_state_dict(live.state_dict())
    overwrite_eps(model, 0.0)
    model.transform.resize = lambda image, target: (image, target)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    calibrate(model, images)
    return model


def outputs_of(model: nn.Module, images: list, layers) -> dict:
    """What some layers return in a detection, [channels, regions or positions] of each call."""
    outputs = collections.defaultdict(list)
    hooks = [layer.register_forward_hook(lambda layer, inputs, output: outputs[layer].append(
        output.transpose(0, 1).flatten(1))) for layer in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    return outputs


def calibrate(model: nn.Module, images: list) -> None:
    """Scales the last layers so that their outputs have mean 0 and a known deviation.

    Without it nearly all scores are equal, and no detection has a score above the threshold. If
    boxes moved further, clipping would leave slivers of them, which no rounding leaves alone.
    """
    head, predictor = model.rpn.head, model.roi_heads.box_predictor
    for wanted in ({head.cls_logits: 2.0, head.bbox_pred: 0.05},  # these choose the regions
                   {predictor.cls_score: 1.5, predictor.bbox_pred: 0.3},
                   *([{model.roi_heads.mask_predictor.mask_fcn_logits: 2.0}]
                     if model.roi_heads.has_mask() else [])):
        outputs = outputs_of(model, images, wanted)
        for layer, deviation in wanted.items():
            values = torch.cat(outputs[layer], 1)
            scale = deviation / values.std(1)
            layer.weight *= scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias[:] = scale * (layer.bias - values.mean(1))
