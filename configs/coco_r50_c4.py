"""Faster R-CNN on ResNet-50, "C4", on COCO 2017, after detectron2: AP 35.7 on val2017.

Not run for want of computing time.

  python -m resnet_jax.convert --input=ResNet-50-model.caffemodel --output=weights/r50
  python -m resnet_jax.main --config=configs/coco_r50_c4.py \
      --config.init.checkpoint=weights/r50 --config.data.path=DIR

DIR holds annotations/ and the images; the weights are the authors'. The schedule is detectron2's
"1x"; with "3x", as in configs/coco_r101_c4.py, it has AP 38.4. For weights of torchvision, pass
--config.model.stride_in=v1.5 and --config.model.pool_pad=both.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.task = 'detection'
    config.num_steps = 90_000
    config.batch_size = 16

    config.model.family = 'imagenet'
    config.model.depth = 50
    config.model.num_classes = 80
    config.model.pool_pad = 'end'  # as in the authors' Caffe models
    config.model.dtype = 'bfloat16'
    config.init.freeze = ('^stem', '^stage1', 'norm')
    config.init.freeze_bn = True

    config.data.source = 'coco'
    config.data.image_size = (800, 1344)
    config.data.canvases = ((1344, 800),)
    config.data.short_sides = tuple(range(640, 801, 32))
    config.data.long_side = 1333
    config.data.flip = True
    config.data.normalization = 'imagenet'  # replaced by that of the weights

    config.optimizer.momentum_form = 'pytorch'
    config.schedule.learning_rate = 0.02
    config.schedule.boundaries = (60_000, 80_000)
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 1_000

    config.eval.every_steps = 10_000
    config.eval.batch_size = 16
    config.log.every_steps = 20
    return config
