"""ResNet-101 localizes on ImageNet: the R-CNN of appendix C on proposals.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_loc_rcnn_r101.py --config.data.path=DIR \
      --config.init.checkpoint=runs/imagenet_loc_r101
  python -m resnet_jax.evaluate --workdir=runs/imagenet_loc_rcnn_r101 --protocol=multi_scale \
      --scales=448,512,768,960,1280

The paper's top-5 localization error on the validation images falls from 14.4 to 10.6 % by this step
(table 13). The localizer of configs/imagenet_loc_r101.py proposes 200 boxes of the true class for
each image, and a second ResNet-101 is trained on 256 of them per step, warped to 224 x 224 pixels.
They are cut out of crops of 448 pixels, which the localizer sees at half the size, as in its own
training; --scales are therefore twice its own. The learning rate and the number of steps are ours.
"""

from configs import imagenet_loc_r101


def get_config():
    config = imagenet_loc_r101.get_config()
    config.task = 'localization_rcnn'
    config.num_steps = 40_000
    config.init.checkpoint = 'runs/imagenet_loc_r101'

    config.model.localizer.reduction = 2
    config.data.image_size = 448
    config.data.jitter_sides = (512, 960)
    config.data.eval_resize = 512
    config.data.jitter_sides = (512, 960)

    config.schedule.learning_rate = 0.001
    config.schedule.boundaries = (30_000,)

    config.eval.every_steps = None  # at the end only: it judges 10 million crops
    return config
