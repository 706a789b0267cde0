"""Trains a new last layer on a trained ResNet-50 of half the width: 3,000 photographs, ten classes.

  python -m resnet_jax.convert --input=resnet50_half_width_open_nsfw.npz --output=weights/half
  python -m resnet_jax.main --config=configs/imagenette_finetune.py \\
      --config.init.checkpoint=weights/half --config.data.path=DIR

DIR holds ten classes of Imagenette (github.com/fastai/imagenette) as for configs/folder.py, 300 and
100 images each; docs/data.md shows how the classes get names. The layers before the last one keep
their weights. Runs with seeds 0, 1 and 2 ended at a top-1 error of 5.3, 5.5 and 5.6 % on the 1,000
validation images, the first after 6.3 minutes on two cores of an AMD EPYC that did nothing else.
Not run by a test: the commands need third-party weights and photographs, and minutes of training.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 750  # eight epochs
    config.batch_size = 32

    # The architecture and the normalisation are those of init.checkpoint. Its batch normalisation
    # is folded, so the statistics of other images would not fit.
    config.model.family = 'imagenet'
    config.init.freeze = ('^stem', '^stage')
    config.init.freeze_bn = True

    config.data.source = 'folder'
    config.data.normalization = 'imagenet'  # replaced by that of the weights
    config.data.image_size = 224
    # Whole images, as in evaluation: a single layer fits the features of random crops less well.
    config.data.train_crop = 'pad'

    # With the default of 0.0001, layers of two seeds disagree on twice as many held-out images.
    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.02
    config.optimizer.weight_decay = 0.03

    config.log.every_steps = 75
    config.eval.batch_size = 64
    return config
