"""Faster R-CNN on a narrow ResNet-18 finds blood cells: a small set of photographs, from scratch.

  python -m resnet_jax.main --config=configs/bccd_r18.py --config.data.path=DIR

DIR is the BCCD data set (github.com/Shenggan/BCCD_Dataset) with its folders Annotations, ImageSets
and JPEGImages: 292 photographs of 480 x 640 pixels to train on, 72 to test on. One run (seed 0)
ended at AP50 89.27 (area under the curve, as in VOC 2012); see docs/detection.md.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.task = 'detection'
    config.num_steps = 480
    config.batch_size = 16

    config.model.family = 'imagenet'
    config.model.depth = 18
    config.model.width = 32
    config.model.num_classes = 3
    config.model.virtual_batch_size = 8

    detector = config.model.detector
    detector.anchor_sizes = (24, 48, 96, 168)
    detector.anchor_ratios = (0.7, 1.0, 1.4)
    detector.rpn_features = 128
    detector.rpn_pre_nms = (1000, 1000)
    detector.rpn_post_nms = (200, 100)
    detector.rpn_batch = 128
    detector.roi_batch = 48
    detector.roi_positive = 0.5
    detector.roi_size = 8

    config.data.source = 'voc'
    config.data.train_list = 'train+val'
    config.data.eval_list = 'test'
    config.data.bad_boxes = 'skip'  # two boxes have no area
    config.data.image_size = (360, 480)
    config.data.flip = True
    config.data.max_objects = 32

    config.optimizer.name = 'adamw'
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.001
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 50

    config.eval.batch_size = 16
    config.eval.metric = 'voc12'
    config.checkpoint.every_steps = 100
    config.log.every_steps = 20
    return config
