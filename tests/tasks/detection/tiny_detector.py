"""The smallest detector that is still a real one; as a config file, for commands."""

from configs import scenes_r20


def get_config():
    """ResNet-8 of 8 filters on eight scenes of 32 x 32 pixels, on one device."""
    config = scenes_r20.get_config()
    config.init.checkpoint = ''
    config.model.depth = 8
    config.model.width = 8
    config.model.virtual_batch_size = 4
    detector = config.model.detector
    detector.anchor_sizes = (9, 16)
    detector.rpn_features = 8
    detector.rpn_pre_nms = (64, 64)
    detector.rpn_post_nms = (16, 16)
    detector.rpn_batch = 32
    detector.roi_batch = 8
    detector.roi_size = 4
    config.data.source = 'tests.tasks.detection.few_scenes'
    config.data.image_size = 32
    config.data.max_objects = 3
    config.batch_size = 8
    config.num_steps = 6
    config.mesh.data = 1
    config.schedule.update(name='constant', warmup='none', learning_rate=0.003)
    config.eval.update(batch_size=8, every_steps=None)
    config.checkpoint.every_steps = 2
    config.log.every_steps = 2
    config.compilation_cache = ''
    return config
