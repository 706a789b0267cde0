"""Faster R-CNN on ResNet-20 finds handwritten digits in made-up scenes: a first detector.

  python -m resnet_jax.main --config=configs/scenes_digits.py
  python -m resnet_jax.main --config=configs/scenes_r20.py \
      --config.init.checkpoint=runs/scenes_digits

The paper's two steps (appendix A) in miniature: the first command trains a classifier, the second
a detector that starts from it. This is not one of the paper's experiments; it checks in a few
minutes on two CPU cores that everything works. With --config.init.checkpoint='' the detector is
trained from random weights.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.task = 'detection'
    config.num_steps = 400
    config.batch_size = 16
    config.init.checkpoint = 'runs/scenes_digits'

    config.model.family = 'cifar'
    config.model.depth = 20
    config.model.width = 16
    config.model.shortcut = 'A'
    config.model.num_classes = 10
    config.model.virtual_batch_size = 8

    detector = config.model.detector
    detector.anchor_sizes = (9, 13, 19)
    detector.anchor_ratios = (0.7, 1.0, 1.5)
    detector.rpn_features = 32
    detector.rpn_pre_nms = (256, 256)
    detector.rpn_post_nms = (48, 48)
    detector.rpn_batch = 64
    detector.roi_batch = 32
    detector.roi_positive = 0.5
    detector.roi_size = 8

    config.data.source = 'scenes'
    config.data.image_size = 64
    config.data.channels = 1
    config.data.max_objects = 8

    config.optimizer.name = 'adamw'
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.003
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 40

    config.eval.batch_size = 32
    config.eval.object_areas = (12**2, 18**2)  # scenes are small; COCO's bounds would be for photos
    config.log.every_steps = 50
    return config
