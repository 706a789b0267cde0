"""ResNet-101 localizes on ImageNet: the per-class proposal network of appendix C.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_loc_r101.py --config.data.path=DIR \
      --config.init.checkpoint=weights/r101
  python -m resnet_jax.evaluate --workdir=runs/imagenet_loc_r101 --protocol=multi_scale \
      --scales=224,256,384,480,640

The paper's localization error in percent, on the validation images (table 13):

                                            true class   top-5 predicted classes
  VGG-16, 1 crop                                  33.1
  this network, 1 crop                            13.3
  this network, dense and multi-scale             11.7                      14.4
  with an R-CNN on its proposals, dense                                     10.6
  ensemble of such                                                           8.9

DIR is ILSVRC's folder with Annotations/CLS-LOC and Data/CLS-LOC; see
resnet_jax/data/imagenet_boxes.py. The paper gives the batches, the crops and the anchors that are
drawn from an image, but neither the sizes of anchors nor the learning rate; these are ours. It
takes the predicted classes from a classifier with 4.6 % top-5 error.
"""

from configs import imagenet_r101


def get_config():
    config = imagenet_r101.get_config()
    config.task = 'localization'
    config.num_steps = 60_000  # 28 epochs of the images with boxes
    config.init.checkpoint = 'weights/r101'
    config.init.new_head = False

    config.data.source = 'imagenet_boxes'
    config.data.max_objects = 64

    config.schedule.name = 'steps'
    config.schedule.learning_rate = 0.01
    config.schedule.boundaries = (40_000, 55_000)
    return config
