"""Fine-tunes trained weights on your own images, with a new last layer.

  python -m resnet_jax.main --config=configs/finetune.py \\
      --config.init.checkpoint=hf:timm/resnet50.a1_in1k --config.data.path=DIR
  python -m resnet_jax.predict --checkpoint=runs/finetune photo.jpg

DIR is a folder as for configs/folder.py. The weights are a name of the Hugging Face hub, a run, or
the output of `python -m resnet_jax.convert`. The architecture, the image size and the normalisation
are theirs, and they must stay in place until the run has finished. The batches and the number of
steps are chosen as in configs/folder.py. To train only the last layer:
--config.init.freeze="('stem', 'stage')".

Run on 24 photographs of each of five classes of Imagenette from Yahoo's Open-NSFW, with
--config.data.image_size=112: 240 steps, and a top-1 error of 22.0 % on 100 photographs of the
validation split, OTHERS/val/CLASS, by

  python -m resnet_jax.evaluate --workdir=runs/finetune --config=configs/finetune.py \\
      --config.data.path=OTHERS
"""

from configs import folder


def get_config():
    config = folder.get_config()
    config.num_epochs = 20
    config.model.depth = None
    config.data.eval_crop_share = None
    # The usual constants of published weights; replaced by those stored with the weights.
    config.data.normalization = 'imagenet'

    # Batches may be small, and the features of any size: the statistics stay those of the weights,
    # and the optimizer is one whose steps do not grow with the gradient.
    config.init.freeze_bn = True
    config.optimizer.name = 'adamw'
    config.schedule.learning_rate = 1e-4
    return config
