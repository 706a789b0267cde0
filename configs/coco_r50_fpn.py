"""Faster R-CNN on a ResNet-50 with a feature pyramid, on COCO 2017, after torchvision: AP 37.0.

  python -m resnet_jax.convert --input=resnet50.safetensors --output=weights/r50
  python -m resnet_jax.main --config=configs/coco_r50_fpn.py --config.data.path=DIR \
      --config.init.checkpoint=weights/r50

Not run for want of computing time.

The weights are torchvision's, for which this is set up. A batch has one orientation.

Four images per chip fit on 16 TPU v5e chips, with 4,692 of 16,384 MiB per chip and 2 all-reduces,
according to

  python -m resnet_jax.compile --config=configs/coco_r50_fpn.py --topology=v5e:4x4 \
      --config.batch_size=64
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.task = 'detection'
    config.num_steps = 190_000  # 26 epochs
    config.batch_size = 16

    config.model.family = 'imagenet'
    config.model.depth = 50
    config.model.num_classes = 80
    config.model.stride_in = 'v1.5'
    config.model.dtype = 'bfloat16'
    config.model.detector.kind = 'fpn'
    config.model.detector.preset = 'torchvision'
    config.init.freeze = ('^stem', '^stage1', 'norm')
    config.init.freeze_bn = True

    config.data.source = 'coco'
    config.data.image_size = (800, 1344)
    config.data.canvases = ((1344, 800),)
    config.data.short_sides = (800,)
    config.data.long_side = 1333
    config.data.flip = True
    config.data.normalization = 'imagenet'  # replaced by that of the weights

    config.optimizer.momentum_form = 'pytorch'
    config.schedule.learning_rate = 0.02
    config.schedule.boundaries = (117_000, 161_000)  # epochs 16 and 22
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 1_000

    config.eval.every_steps = 10_000
    config.eval.batch_size = 16
    config.log.every_steps = 20
    return config
