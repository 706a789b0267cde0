"""Faster R-CNN on ResNet-101, "C4", on COCO 2017, after detectron2: AP 41.1 on val2017.

Not run for want of computing time.

  python -m resnet_jax.convert --input=ResNet-101-model.caffemodel --output=weights/r101
  python -m resnet_jax.main --config=configs/coco_r101_c4.py \
      --config.init.checkpoint=weights/r101 --config.data.path=DIR

The paper has AP 27.2 and AP50 48.4 on COCO 2014 val (table 8), after training on the 2014 training
images. The schedule is detectron2's "3x", the only one with a published number.

32 images per step fit on 16 TPU v5e chips, with 3,711 of 16,384 MiB per chip and 3 all-reduces; the
roofline is 61.3 ms, 54.7 % of the peak FLOPs, according to

  python -m resnet_jax.compile --config=configs/coco_r101_c4.py --topology=v5e:4x4 \
      --config.batch_size=32
"""

from configs import coco_r50_c4


def get_config():
    config = coco_r50_c4.get_config()
    config.num_steps = 270_000
    config.model.depth = 101
    config.schedule.boundaries = (210_000, 250_000)
    return config
