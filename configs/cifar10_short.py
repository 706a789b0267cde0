"""CIFAR-10 with the schedule of section 4.2 divided by ten: figure 6 without an accelerator.

  python -m experiments.degradation --config=configs/cifar10_short.py --depths=20,56 --seeds=0 \
      --config.data.path=DIR --workdir=runs/cifar10_short

Trains for 6,400 steps and divides the learning rate by ten after 3,200 and 4,800; everything else
is as in configs/cifar10.py. DIR is an image folder with DIR/train/CLASS/*.jpg and
DIR/test/CLASS/*.jpg; for TFDS set --config.data.source=tfds instead. Compare the errors with each
other, not with table 6, which has longer training.

Not run at other depths than 20 and 56 for want of computing time; docs/results/README.md has the
results of these, on images saved as JPEG.
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.num_steps = 6_400
    config.data.source = 'folder'
    config.schedule.boundaries = (3_200, 4_800)
    config.eval.every_steps = 400
    config.checkpoint.every_steps = 200
    config.log.every_steps = 50
    return config
