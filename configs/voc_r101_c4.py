"""Faster R-CNN on ResNet-101 as in the paper, on VOC 2007 + 2012: mAP 76.4 on 2007 test (table 7).

  python -m resnet_jax.convert --input=ResNet-101-model.caffemodel --output=weights/r101
  python -m resnet_jax.main --config=configs/voc_r101_c4.py \
      --config.init.checkpoint=weights/r101 --config.data.path=VOCdevkit

Not run for want of computing time.

VOCdevkit holds the folders VOC2007 and VOC2012; the weights are the authors'. detectron2
has 80.3 with ResNet-50 and its own recipe, configs/voc_r50_c4.py.

The paper alternates between proposals and regions, with one or two images per step. Here both are
trained at once, with 16 images per step, 16 times the learning rate and 240,000 images in all.
"""

from configs import voc_r50_c4


def get_config():
    config = voc_r50_c4.get_config()
    config.num_steps = 15_000
    config.model.depth = 101
    config.model.detector.preset = 'paper'

    config.data.image_size = (608, 1008)
    config.data.canvases = ((1008, 608),)
    config.data.short_sides = (600,)
    config.data.long_side = 1000

    config.optimizer.weight_decay = 5e-4
    config.optimizer.momentum_form = 'paper'
    config.schedule.learning_rate = 0.016
    config.schedule.boundaries = (11_250,)  # three quarters, as in Faster R-CNN

    config.eval.every_steps = 5_000
    return config
