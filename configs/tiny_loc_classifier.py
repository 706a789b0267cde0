"""A narrow ResNet-18 tells apart 20 classes of Tiny ImageNet: the start of configs/tiny_loc.py.

  python -m resnet_jax.main --config=configs/tiny_loc_classifier.py --config.data.path=DIR

Appendix C starts its localization network from a classifier. DIR holds train/WNID/*.JPEG and
val/WNID/*.JPEG, 500 and 50 images of each class with 64 x 64 pixels, which are enlarged to
96 x 96, so that the last feature map has 3 x 3 positions.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 800
    config.batch_size = 64

    config.model.family = 'imagenet'
    config.model.depth = 18
    config.model.width = 32
    config.model.num_classes = 20
    config.model.virtual_batch_size = 32

    config.data.source = 'folder'
    config.data.image_size = 96
    config.data.train_crop = 'random_resized'
    config.data.crop_scale = (0.4, 1.0)
    config.data.flip = True

    config.optimizer.weight_decay = 5e-4
    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 50

    config.eval.every_steps = 400
    config.eval.batch_size = 256
    config.checkpoint.every_steps = 100
    config.log.every_steps = 50
    return config
