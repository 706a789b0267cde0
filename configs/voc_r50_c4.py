"""Faster R-CNN on ResNet-50, "C4", on VOC 2007 + 2012, after detectron2: AP50 80.3 on 2007 test.

  python -m resnet_jax.convert --input=ResNet-50-model.caffemodel --output=weights/r50
  python -m resnet_jax.main --config=configs/voc_r50_c4.py \
      --config.init.checkpoint=weights/r50 --config.data.path=VOCdevkit

Not run for want of computing time.

VOCdevkit holds the folders VOC2007 and VOC2012; the weights are the authors'. The number
is the mean of 11-point average precisions; with the same metric the paper has 76.4 for ResNet-101
(table 7; configs/voc_r101_c4.py). For weights of torchvision, pass --config.model.stride_in=v1.5
and --config.model.pool_pad=both.
"""

from configs import coco_r50_c4


def get_config():
    config = coco_r50_c4.get_config()
    config.num_steps = 18_000
    config.model.num_classes = 20

    config.data.source = 'voc'
    config.data.train_list = 'VOC2007/trainval+VOC2012/trainval'
    config.data.eval_list = 'VOC2007/test'
    config.data.short_sides = tuple(range(480, 801, 32))

    config.schedule.boundaries = (12_000, 16_000)
    config.schedule.warmup_steps = 100

    config.eval.every_steps = 6_000
    config.eval.metric = 'voc07'
    return config
