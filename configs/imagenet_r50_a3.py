"""ResNet-50 by procedure A3 of "ResNet strikes back": 78.1 % top-1 accuracy.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r50_a3.py

R. Wightman, H. Touvron and H. Jegou, 2021, table 2: 100 epochs of images of 160 x 160 pixels,
evaluated at 224 x 224. What is different here: mixup and CutMix draw their weights for each pair of
images instead of each batch; the learning rate falls from step to step instead of from epoch to
epoch, and to 0 instead of 1e-6.
"""

from configs import imagenet

EPOCH = 1_281_167 // 2_048  # steps


def get_config():
    config = imagenet.get_config()
    config.num_steps = 100 * EPOCH
    config.batch_size = 2_048

    config.model.stride_in = 'v1.5'
    config.model.zero_init_last_gamma = True
    config.model.virtual_batch_size = 128

    config.data.image_size = 160
    config.data.eval_size = 224
    config.data.eval_resize = None
    config.data.eval_crop_share = 0.95
    config.data.eval_filter = 'bicubic'
    config.data.train_filter = 'random'
    config.data.train_crop = 'random_resized'
    config.data.color_noise = 0.0
    config.data.randaugment_layers = 2
    config.data.randaugment_magnitude = 6
    config.data.randaugment_noise = 0.5
    config.data.mixup_alpha = 0.1
    config.data.cutmix_alpha = 1.0
    config.data.normalization = 'imagenet'

    config.loss.name = 'binary'
    config.loss.target_threshold = 0.2

    config.optimizer.name = 'lamb'
    config.optimizer.weight_decay = 0.02
    config.optimizer.decay_bn_and_bias = False
    config.optimizer.clip_norm = 1.0  # part of timm's LAMB

    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 8e-3
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 5 * EPOCH
    config.schedule.warmup_from = 1e-4

    config.eval.every_steps = 10 * EPOCH
    config.eval.recalibrate_batches = 0
    return config
