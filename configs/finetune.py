"""Fine-tunes trained weights on your own images, with a new last layer.

  python -m resnet_jax.main --config=configs/finetune.py \\
      --config.init.checkpoint=hf:timm/resnet50.a1_in1k --config.data.path=DIR
  python -m resnet_jax.predict --checkpoint=runs/finetune photo.jpg

DIR is a folder as for configs/folder.py. The weights are a name of the Hugging Face hub, a run, or
the output of `python -m resnet_jax.convert`. The architecture, the image size and the normalisation
are theirs, and they must stay in place until the run has finished. The batches, the number of steps
and the learning rate are chosen as in configs/folder.py. To train only the last layer:
--config.init.freeze="('stem', 'stage')" --config.init.freeze_bn=true. Not run.
"""

from configs import folder


def get_config():
    config = folder.get_config()
    config.num_epochs = 20
    config.model.depth = None
    config.data.eval_crop_share = None
    # The usual constants of published weights; replaced by those stored with the weights.
    config.data.normalization = 'imagenet'
    return config
