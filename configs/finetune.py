"""Fine-tunes trained weights on your own images, with a new last layer.

  python -m resnet_jax.convert --input=resnet50.safetensors --output=weights/r50
  python -m resnet_jax.main --config=configs/finetune.py \\
      --config.init.checkpoint=weights/r50 --config.data.path=DIR

DIR is a folder as for configs/folder.py. The architecture, image size and normalisation are those
of the weights, which must stay in place until the run has finished. To train only the last layer:
--config.init.freeze="('stem', 'stage')" --config.init.freeze_bn=true. Not run.
"""

from configs import folder


def get_config():
    config = folder.get_config()
    config.num_steps = 2_000
    config.model.depth = None
    config.data.image_size = None
    config.data.eval_resize = None
    # The usual constants of published weights; replaced by those stored with the weights.
    config.data.normalization = 'imagenet'

    config.schedule.learning_rate = 0.005
    config.schedule.warmup_steps = 100

    config.eval.every_steps = 200
    config.checkpoint.every_steps = 200
    return config
