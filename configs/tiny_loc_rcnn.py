"""An R-CNN on proposals, 20 classes of Tiny ImageNet: the second step of appendix C in miniature.

  python -m resnet_jax.main --config=configs/tiny_loc_classifier.py --config.data.path=DIR
  python -m resnet_jax.main --config=configs/tiny_loc.py --config.data.path=DIR \
      --config.init.checkpoint=runs/tiny_loc_classifier
  python -m resnet_jax.main --config=configs/tiny_loc_rcnn.py --config.data.path=DIR \
      --config.init.checkpoint=runs/tiny_loc
  python -m resnet_jax.evaluate --workdir=runs/tiny_loc_rcnn

DIR is as for configs/tiny_loc.py. The localizer that the second command trained proposes 20 boxes
of the true class for each image. A second ResNet-18, which starts from the same weights, is trained
on these boxes, warped to 80 x 80 pixels, whose last feature map also has 3 x 3 positions. On a map
of 2 x 2, XLA's convolutions on CPU take several times as long.
"""

from configs import tiny_loc


def get_config():
    config = tiny_loc.get_config()
    config.task = 'localization_rcnn'
    config.num_steps = 400
    config.init.checkpoint = 'runs/tiny_loc'

    config.model.localizer.proposals = 20
    config.model.localizer.crop_size = 80

    config.eval.every_steps = None
    return config
