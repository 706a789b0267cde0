"""detectron2's Faster and Mask R-CNN by its rules, of PyTorch's operations alone.

Weights are a dict under detectron2's names, as its .pkl files hold them.
"""

import math

import numpy as np
import pytest

from tests.weights.torch_networks import torch

torchvision = pytest.importorskip(
    'torchvision', reason='parity needs torchvision: pip install .[test-detection]')

from torch.nn import functional as F  # noqa: E402
from torchvision import ops  # noqa: E402

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Of the outputs of the last layers. With random weights nearly all scores would be equal, and no
# detection would have a score above the threshold.
DEVIATIONS = {'objectness_logits': 2.0, 'anchor_deltas': 0.05, 'cls_score': 1.5, 'bbox_pred': 0.3,
              'predictor': 2.0}
PIXEL_MEAN = 103.53, 116.28, 123.675  # blue, green, red


def shapes(kind, depth=50, width=64, classes=80, masks=False, features=256, dense=1024):
    """The shapes of all tensors by name: kind is 'c4' or 'fpn'.

    Args:
      kind, masks: which detector.
      depth, width, classes: of the ResNet, with this many filters, and of COCO.
      features: filters of the pyramid and the mask branch.
      dense: outputs of the dense layers on a pyramid.
    """
    found = {}

    def layer(name, *shape, bias=True):
        found[f'{name}.weight'] = shape
        if bias:
            found[f'{name}.bias'] = shape[:1]

    def conv(name, outputs, inputs, size):
        layer(name, outputs, inputs, size, size, bias=False)
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            found[f'{name}.norm.{part}'] = (outputs,)

    body = 'backbone.' if kind == 'c4' else 'backbone.bottom_up.'
    conv(f'{body}stem.conv1', width, 3, 7)
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        prefix = 'roi_heads.' if kind == 'c4' and stage == 3 else body
        for block in range(blocks):
            name, filters = f'{prefix}res{stage + 2}.{block}', width * 2**stage
            if block == 0:
                conv(f'{name}.shortcut', 4 * filters, inputs, 1)
            conv(f'{name}.conv1', filters, inputs, 1)
            conv(f'{name}.conv2', filters, filters, 3)
            conv(f'{name}.conv3', 4 * filters, filters, 1)
            inputs = 4 * filters
    shared, anchors, described = (inputs // 2, 15, inputs) if kind == 'c4' else (features, 3, dense)
    rpn, roi = 'proposal_generator.rpn_head.', 'roi_heads.'
    layer(f'{rpn}conv', shared, shared, 3, 3)
    layer(f'{rpn}objectness_logits', anchors, shared, 1, 1)
    layer(f'{rpn}anchor_deltas', 4 * anchors, shared, 1, 1)
    if kind == 'fpn':
        for i in range(4):
            layer(f'backbone.fpn_lateral{i + 2}', features, 4 * width * 2**i, 1, 1)
            layer(f'backbone.fpn_output{i + 2}', features, features, 3, 3)
        layer(f'{roi}box_head.fc1', dense, features * 7 * 7)
        layer(f'{roi}box_head.fc2', dense, dense)
    layer(f'{roi}box_predictor.cls_score', classes + 1, described)
    layer(f'{roi}box_predictor.bbox_pred', 4 * classes, described)
    if masks:
        for i in range(4 if kind == 'fpn' else 0):
            layer(f'{roi}mask_head.mask_fcn{i + 1}', features, features, 3, 3)
        found[f'{roi}mask_head.deconv.weight'] = (
            features if kind == 'fpn' else described, features, 2, 2)
        found[f'{roi}mask_head.deconv.bias'] = (features,)
        layer(f'{roi}mask_head.predictor', classes, features, 1, 1)
    return found


class Detector:
    """A detector with random weights, whose outputs have known deviations on some images.

    Args:
      kind, masks, sizes: see `shapes`.
      images: float32 [N, 3, H, W], blue first, less PIXEL_MEAN, 0 beyond their size.
      image_sizes: (height, width) of each.
      proposals: after suppression.
    """

    def __init__(self, kind, images, image_sizes, proposals, masks=False, **sizes):
        self.kind, self.masks, self.proposals, self.depth = kind, masks, proposals, 50
        generator = torch.Generator().manual_seed(0)
        self.state = {}
        for name, shape in shapes(kind, masks=masks, **sizes).items():
            fan_in = math.prod(shape[1:])
            self.state[name] = torch.randn(shape, generator=generator) * (
                (2 / fan_in) ** 0.5 if len(shape) > 1 else 0.1)
            if '.norm.weight' in name:
                self.state[name] = torch.empty(shape).uniform_(0.5, 1.0, generator=generator)
        self.calibrated = set()  # names of layers that have been used
        self(images, image_sizes)

    def pickled(self):
        """What a .pkl of the model zoo holds."""
        anchors = {f'proposal_generator.anchor_generator.cell_anchors.{i}': x.numpy()
                   for i, x in enumerate(self.cell_anchors())}
        return {'model': {name: x.numpy() for name, x in self.state.items()} | anchors | {
            'pixel_mean': np.float32(PIXEL_MEAN).reshape(3, 1, 1),
            'pixel_std': np.ones((3, 1, 1), np.float32)}, '__author__': 'Detectron2 Model Zoo'}

    def is_first(self, name):
        """Whether a layer is used for the first time, when it is calibrated."""
        known = name in self.calibrated
        self.calibrated.add(name)
        return not known

    def layer(self, x, name, padding=0):
        kernel, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        run = F.linear if kernel.ndim == 2 else lambda *args: F.conv2d(*args, padding=padding)
        deviation = DEVIATIONS.get(name.split('.')[-1])
        if deviation and self.is_first(name):
            values = run(x, kernel, bias).transpose(0, 1).flatten(1)
            scale = deviation / values.std(1)
            kernel *= scale.reshape(-1, *[1] * (kernel.ndim - 1))
            bias[:] = scale * (bias - values.mean(1))
        return run(x, kernel, bias)

    def conv(self, x, name, stride=1, padding=0):
        x = F.conv2d(x, self.state[f'{name}.weight'], None, stride, padding)
        norm = {part: self.state[f'{name}.norm.{part}']
                for part in ('running_mean', 'running_var', 'weight', 'bias')}
        if self.is_first(name):
            norm['running_mean'][:] = x.mean((0, 2, 3))
            norm['running_var'][:] = x.var((0, 2, 3))
        return F.batch_norm(x, **norm, training=False, eps=1e-5)

    def stage(self, x, name, blocks, first_stride):
        for i in range(blocks):
            block, stride = f'{name}.{i}', first_stride if i == 0 else 1
            y = F.relu(self.conv(x, f'{block}.conv1', stride))  # STRIDE_IN_1X1
            y = F.relu(self.conv(y, f'{block}.conv2', padding=1))
            y = self.conv(y, f'{block}.conv3')
            x = F.relu(y + (x if i else self.conv(x, f'{block}.shortcut', stride)))
        return x

    def features(self, images):
        """The levels that propose; all of a pyramid but the last are pooled from."""
        body = 'backbone.' if self.kind == 'c4' else 'backbone.bottom_up.'
        x = F.relu(self.conv(images, f'{body}stem.conv1', 2, 3))
        x, stages = F.max_pool2d(x, 3, 2, 1), []
        for i in range(3 if self.kind == 'c4' else 4):
            x = self.stage(x, f'{body}res{i + 2}', BLOCKS[self.depth][i], 2 if i else 1)
            stages.append(x)
        if self.kind == 'c4':
            return [x]
        levels, above = [], None
        for i in (5, 4, 3, 2):
            x = self.layer(stages[i - 2], f'backbone.fpn_lateral{i}')
            above = x if above is None else x + F.interpolate(above, scale_factor=2)
            levels.insert(0, self.layer(above, f'backbone.fpn_output{i}', 1))
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]

    def strides(self):
        return (16,) if self.kind == 'c4' else (4, 8, 16, 32, 64)

    def cell_anchors(self):
        """Of each level, [A, 4]: the first size with all ratios comes first."""
        sizes = 32, 64, 128, 256, 512
        found = []
        for level in ([sizes] if self.kind == 'c4' else [[size] for size in sizes]):
            rows = []
            for size in level:
                for ratio in (0.5, 1.0, 2.0):
                    width = math.sqrt(size**2 / ratio)
                    height = ratio * width
                    rows.append([-width / 2, -height / 2, width / 2, height / 2])
            found.append(torch.tensor(rows))
        return found

    def propose(self, levels, image_sizes):
        """Boxes [R, 4] and scores [R], before the sigmoid, of each image."""
        rpn = 'proposal_generator.rpn_head.'
        # First on all levels at once, as they share the layers.
        hidden = torch.cat([F.relu(self.layer(x, f'{rpn}conv', 1)).flatten(2) for x in levels], 2)
        for name in ('objectness_logits', 'anchor_deltas'):
            self.layer(hidden[..., None], rpn + name)
        boxes, scores, numbers = [], [], []
        for i, (x, cell, stride) in enumerate(
                zip(levels, self.cell_anchors(), self.strides(), strict=True)):
            hidden, (height, width) = F.relu(self.layer(x, f'{rpn}conv', 1)), x.shape[2:]
            y, x = (stride * torch.arange(n) for n in (height, width))
            shift = torch.stack([x.repeat(height), y.repeat_interleave(width)] * 2, 1)
            anchors = (shift[:, None] + cell).reshape(-1, 4)
            score = self.layer(hidden, f'{rpn}objectness_logits').permute(0, 2, 3, 1).flatten(1)
            delta = self.layer(hidden, f'{rpn}anchor_deltas').unflatten(1, (-1, 4)).permute(
                0, 3, 4, 1, 2).reshape(len(score), -1, 4)
            top, index = score.topk(min(6000 if self.kind == 'c4' else 1000, score.shape[1]))
            boxes.append(torch.stack([decoded(d[k], anchors[k], (1, 1, 1, 1))
                                      for d, k in zip(delta, index, strict=True)]))
            scores.append(top)
            numbers.append(torch.full(top.shape, i))
        found = []
        for box, score, number, size in zip(
                *(torch.cat(parts, 1) for parts in (boxes, scores, numbers)), image_sizes,
                strict=True):
            box = ops.clip_boxes_to_image(box, size)
            keep = (box[:, 2:] > box[:, :2]).all(1)
            box, score, number = box[keep], score[keep], number[keep]
            keep = ops.batched_nms(box, score, number, 0.7)[:self.proposals]
            found.append((box[keep], score[keep]))
        return found

    def pool(self, levels, boxes, bins):
        """ROIAlignV2 with sampling ratio 0, of the boxes of each image."""
        if self.kind == 'c4':
            return ops.roi_align(levels[0], boxes, bins, 1 / 16, 0, aligned=True)
        rows = torch.cat([torch.cat([torch.full((len(box), 1), float(i)), box], 1)
                          for i, box in enumerate(boxes)])
        area = (rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])
        numbers = torch.floor(4 + torch.log2(area.sqrt() / 224 + 2.2e-16)).clamp(2, 5)
        pooled = torch.zeros(len(rows), levels[0].shape[1], bins, bins)
        for i in range(4):
            own = numbers == i + 2
            pooled[own] = ops.roi_align(
                levels[i], rows[own], bins, 1 / self.strides()[i], 0, aligned=True)
        return pooled

    def res5(self, pooled):
        return self.stage(pooled, 'roi_heads.res5', 3, 2)

    def heads(self, levels, boxes):
        """Scores [R, K + 1], the background last, and deltas [R, K, 4], of all images."""
        if self.kind == 'c4':
            x = self.res5(self.pool(levels, boxes, 14)).mean((2, 3))
        else:
            x = self.pool(levels, boxes, 7).flatten(1)
            for name in ('fc1', 'fc2'):
                x = F.relu(self.layer(x, f'roi_heads.box_head.{name}'))
        score, delta = (self.layer(x, f'roi_heads.box_predictor.{name}')
                        for name in ('cls_score', 'bbox_pred'))
        return score, delta.unflatten(1, (-1, 4))

    def mask_of(self, levels, boxes, classes):
        """The probabilities of the masks of each box's class, [R, M, M]."""
        x = self.pool(levels, boxes, 14)
        if self.kind == 'c4':
            x = self.res5(x)
        else:
            for i in range(1, 5):
                x = F.relu(self.layer(x, f'roi_heads.mask_head.mask_fcn{i}', 1))
        name = 'roi_heads.mask_head.deconv'
        x = F.relu(F.conv_transpose2d(
            x, self.state[f'{name}.weight'], self.state[f'{name}.bias'], 2))
        scores = self.layer(x, 'roi_heads.mask_head.predictor')
        return scores[torch.arange(len(scores)), classes].sigmoid()

    @torch.no_grad()
    def __call__(self, images, image_sizes):
        """Boxes, scores, classes and masks of each image, and what was in between."""
        levels = self.features(images)
        proposals = self.propose(levels, image_sizes)
        regions = [boxes for boxes, _ in proposals]
        score, delta = self.heads(levels, regions)
        counts = [len(x) for x in regions]
        found = []
        for box, s, d, size in zip(regions, score.split(counts), delta.split(counts), image_sizes,
                                   strict=True):
            boxes = ops.clip_boxes_to_image(decoded(d, box[:, None], (10, 10, 5, 5)), size)
            probability = s.softmax(1)[:, :-1]
            above = probability > 0.05
            boxes, kept, classes = boxes[above], probability[above], above.nonzero()[:, 1]
            keep = ops.batched_nms(boxes, kept, classes, 0.5)[:100]
            found.append([boxes[keep], kept[keep], classes[keep]])
        if self.masks:
            masks = self.mask_of(levels, [x[0] for x in found], torch.cat([x[2] for x in found]))
            for row, mask in zip(found, masks.split([len(x[0]) for x in found]), strict=True):
                row.append(mask)
        return found, {'levels': levels, 'proposals': proposals, 'scores': score, 'deltas': delta}


def decoded(deltas, boxes, weights):
    """Boxes from corrections of others, as Box2BoxTransform does it."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas / torch.tensor(weights)
    centre = centre + deltas[..., :2] * size
    size = size * deltas[..., 2:].clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([centre - size / 2, centre + size / 2], -1)
