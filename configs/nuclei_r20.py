"""Mask R-CNN on ResNet-20 outlines the nuclei of cells in microscope images, from random weights.

  python -m resnet_jax.main --config=configs/nuclei_r20.py --config.data.path=nuclei

The folder `nuclei` holds the fluorescence images of the Data Science Bowl 2018 with their maps of
instances, in the layout of resnet_jax/data/instances.py: 433 images to train on, 108 to test on,
of 256 x 256 to 1040 x 1388 pixels with up to 375 nuclei. One run (seed 0) ended at mask AP50 84.66
after 77 minutes of processor time; see docs/detection.md.

Nuclei are small, so the network has a stride of 2 where others have 16. Images are scaled to a
shorter side of 320 pixels, and training sees random windows of 160 x 160 of them.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.task = 'detection'
    config.num_steps = 800
    config.batch_size = 16

    config.model.family = 'cifar'
    config.model.depth = 20
    config.model.width = 16
    config.model.num_classes = 1
    config.model.virtual_batch_size = 8

    detector = config.model.detector
    detector.masks = True
    detector.mask_features = 64
    detector.anchor_sizes = (8, 14, 24, 40, 64)
    detector.anchor_ratios = (1.0,)
    detector.rpn_features = 64
    detector.rpn_pre_nms = (500, 1500)
    detector.rpn_post_nms = (150, 400)
    detector.rpn_batch = 128
    detector.roi_batch = 48
    detector.roi_positive = 0.5
    detector.roi_size = 12
    detector.mask_rounding = False
    detector.detections = 300

    config.data.source = 'instances'
    config.data.image_size = (320, 432)
    config.data.short_sides = (320,)
    config.data.window = 160
    config.data.window_objects = 100
    config.data.channels = 1
    config.data.flip = True
    config.data.max_objects = 375

    config.optimizer.name = 'adamw'
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.002
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 50

    config.eval.batch_size = 16
    config.eval.object_areas = (16**2, 48**2)
    config.checkpoint.every_steps = 100
    config.log.every_steps = 20
    return config
