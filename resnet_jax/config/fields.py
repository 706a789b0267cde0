"""All config fields with their defaults, meanings and ranges.

The files in `configs/` start from `default()` and change a few fields. Any field can be set on the
command line with `--config.a.b=value`; `none` clears an optional one.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

# Fields that determine where and how long a run executes, but not what it computes at a given step;
# a run can be resumed with other values. (With a cosine, the learning rate depends on num_steps.)
EXECUTION_FIELDS = (
    'num_steps', 'steps_per_call', 'xla_preset', 'model.unroll', 'model.remat', 'init.checkpoint',
    'init.resume_from', 'data.path', 'data.pipeline', 'data.resident_bytes', 'data.on_unreadable',
    'data.workers', 'data.threads', 'data.chunk_size', 'data.batches_ahead', 'data.cache',
    'data.bucket_cache_bytes', 'eval', 'checkpoint', 'log', 'profile', 'mesh', 'compilation_cache',
    'topology', 'derived',
)

# Fields that may differ between the processes of a job, which have their own disks and cores.
LOCAL_FIELDS = ('init.checkpoint', 'data.path', 'data.workers', 'data.threads', 'data.chunk_size',
                'data.batches_ahead', 'data.cache', 'data.bucket_cache_bytes',
                'compilation_cache')

# Values that reproduce runs made before a field existed, if different from the field's default.
BEFORE = {'optimizer.ema_warmup': False, 'data.randaugment_noise': 0.0,
          'model.detector.mask_rounding': False}
# Fields that have no effect while another one is None or 0.
MEANINGLESS_WITHOUT = {'optimizer.ema_warmup': 'optimizer.ema_decay',
                       'data.randaugment_noise': 'data.randaugment_layers',
                       'model.detector.mask_rounding': 'model.detector.masks'}
# Renamed fields: old path to new path.
RENAMED: dict[str, str] = {}
# Fields of older versions that never changed what a run computes.
REMOVED = ('model.stem_space_to_depth',)
# Fields of older versions that are arguments of an optimizer now: its name, the argument, and the
# default of both.
NOW_ARGUMENTS = {
    'optimizer.lars_trust_coefficient': ('lars', 'trust_coefficient', 0.001),
    'optimizer.adamw_b1': ('adamw', 'b1', 0.9),
    'optimizer.adamw_b2': ('adamw', 'b2', 0.999),
    'optimizer.adamw_epsilon': ('adamw', 'eps', 1e-8),
}


# Fields of `model.detector` that the preset decides where they are not set, and their types.
DETECTOR_FIELDS = {
    'anchor_sizes': object, 'anchor_ratios': object, 'anchor_rule': str, 'anchors_outside': bool,
    'rpn_features': int, 'rpn_pre_nms': object, 'rpn_post_nms': object, 'rpn_nms': float,
    'rpn_min_size': float, 'rpn_batch': int, 'rpn_positive': float, 'rpn_thresholds': object,
    'rpn_beta': float, 'roi_batch': int, 'roi_positive': float, 'roi_thresholds': object,
    'roi_size': int, 'roi_points': int, 'roi_aligned': bool, 'box_weights': object,
    'box_beta': float, 'clip_scales': bool, 'neck_features': int, 'box_features': int,
    'background_box': bool, 'context': bool, 'masks': bool, 'mask_layers': int,
    'mask_features': int, 'mask_rounding': bool, 'cascade': int, 'score_threshold': float,
    'nms': float, 'detections': int,
}


def default() -> ConfigDict:
    """Returns a config with all fields; recipes set those that have no default."""
    config = ConfigDict()

    # 'classification', 'detection', 'localization', 'localization_rcnn', or a module of your own
    # with a TASK; see resnet_jax/tasks/task.py.
    config.task = 'classification'
    # For initial parameters, order of the images and augmentation; below 2**32.
    config.seed = 0
    config.num_steps = placeholder(int)
    # Passes over the training images, where num_steps is not set. A run with num_epochs chooses
    # what is None among batch_size, eval.batch_size, eval.every_steps, data.image_size,
    # schedule.learning_rate and schedule.warmup_steps from the images and the machine, and prints
    # it; see resnet_jax/training/choices.py.
    config.num_epochs = placeholder(int)
    config.batch_size = placeholder(int)  # images per step, over all devices
    # Training steps per compiled call; single steps if a log row, evaluation or checkpoint is due
    # sooner. Useful if launching a step takes as long as the step: small networks on a GPU.
    config.steps_per_call = 1
    config.xla_preset = 'cpu'  # compiler options, see resnet_jax/xla/flags.py

    model = config.model = ConfigDict()
    # 'imagenet', 'cifar'; 'imagenet_v2', 'cifar_v2' with pre-activation (He et al., 2016, "Identity
    # Mappings"); 'vgg'; or another that is registered.
    model.family = placeholder(str)
    # imagenet 18, 34, 50, 101, 152; imagenet_v2 50, 101, 152; cifar and cifar_v2 6n+2, or 9n+2 with
    # bottlenecks; vgg 16, 19. If not set, and init.checkpoint is: that of those weights, with the
    # rest of their architecture.
    model.depth = placeholder(int)
    model.num_classes = placeholder(int)  # None: the number in the data
    model.width = 64  # filters of the first stage: 64 on ImageNet, 16 on CIFAR
    model.stem_width = placeholder(int)  # filters of a residual network's stem; None: as width
    model.deep_stem = False  # (imagenet only) three 3x3 convolutions in place of one 7x7
    model.bottleneck = False  # (cifar, cifar_v2 only) blocks of 1x1, 3x3 and 1x1 convolutions
    # Filters of the 3x3 convolution of bottlenecks in the first stage; None: as width. Wide ResNets
    # have twice as many; ResNeXt 32x4d has 128, 32 groups of 4.
    model.bottleneck_width = placeholder(int)
    model.groups = 1  # of this convolution
    model.plain = False  # no shortcuts
    # 'A' zero padding; 'B' projection where the shape changes; 'C' everywhere; 'D' as 'B', but
    # averages 2x2 pixels where the stride is 2.
    model.shortcut = 'B'
    model.stride_in = 'v1'  # bottleneck stride in the first 1x1 (paper), or 'v1.5': in the 3x3
    model.pool_pad = 'both'  # padding of the stem's max-pooling: 'both' (PyTorch), 'end' (Caffe)
    model.zero_init_last_gamma = False  # blocks start as the identity (Goyal et al., 2017)
    # (classification by residual networks only) how often training leaves out the last block of an
    # image; less and less often towards the first (Huang et al., 2016).
    model.stochastic_depth = 0.0
    model.batch_norm = True  # (vgg only) residual networks always have it
    model.dropout_rate = 0.5  # (vgg only)
    # Images that share batch-norm statistics; None: the whole batch. Smaller batches are one group.
    model.virtual_batch_size = placeholder(int)
    model.bn_momentum = 0.9  # share of the old value that a running average keeps
    model.bn_epsilon = 1e-5
    model.bn_unbiased_variance = True  # running variance times n / (n - 1): Caffe, PyTorch
    model.dtype = 'float32'  # of the computation, or 'bfloat16'; parameters stay float32
    model.unroll = True  # straight-line code; False: loops over blocks, for hundreds of layers
    # Rematerialisation, i.e. what is stored for the backward pass: 'none' whatever the compiler
    # chooses, 'conv' outputs of convolutions, 'block' inputs of blocks; the rest is recomputed.
    model.remat = 'none'

    # (detection only) Faster R-CNN; the fields are explained in resnet_jax/models/detectors.py.
    detector = model.detector = ConfigDict()
    detector.kind = 'c4'  # or 'fpn', a feature pyramid
    detector.preset = 'detectron2'  # or 'paper', 'torchvision': the values of fields that are None
    for name, kind in DETECTOR_FIELDS.items():
        detector[name] = placeholder(kind)

    # (localization only) the fields are explained in resnet_jax/models/localizer.py, and the last
    # three, of the R-CNN, in resnet_jax/models/localizer_rcnn.py.
    localizer = model.localizer = ConfigDict()
    localizer.anchor_sizes = (56, 112, 224)
    localizer.anchor_ratios = (0.5, 1.0, 2.0)
    localizer.per_class = True
    localizer.anchors_per_image = 8
    localizer.proposals = 200
    localizer.crop_size = 224
    localizer.reduction = 1

    # How a new run starts; ignored when a run resumes from its own checkpoint.
    init = config.init = ConfigDict()
    # Initial weights: a workdir, a checkpoint, converted weights, or a name such as
    # hf:timm/resnet50.a1_in1k; '': random.
    init.checkpoint = ''
    init.resume_from = ''  # a workdir or checkpoint to fork, including step and optimizer state
    # Initialise the last layer at random, for new classes; False: only what the weights lack.
    init.new_head = True
    init.freeze = ()  # regular expressions; parameters with a matching path are not trained
    init.freeze_bn = False  # normalise by the running statistics, unchanged, in training too

    data = config.data = ConfigDict()
    # A name in resnet_jax/data/registry.py, or a module: 'my_package.my_source'.
    data.source = placeholder(str)
    data.path = ''  # folder of the dataset, if the source needs one
    data.tfds_name = ''  # ('tfds' only) 'cifar10', 'imagenet2012:5.1.0', ...
    # ('folder', 'imagenet_boxes', 'box_table' only) file of class names in label order; '': by name
    data.class_list = ''
    data.label_file = ''  # ('folder' only) labels of a flat evaluation folder
    # ('coco' only) JSON files, relative to path; '': instances_train2017 and instances_val2017.
    # ('voc' only) lists, such as 'VOC2007/trainval+VOC2012/trainval'; '': trainval, and test.
    # ('tfds' with objects only) splits, such as 'train+validation'; '': train, and test.
    data.train_list = ''
    data.eval_list = ''
    # (data with boxes only) for boxes of no area, or 'skip': leave them out.
    data.bad_boxes = 'error'
    data.holdout = 0  # number of training images to hold out; always the same ones
    # Or 'holdout': the held-out training images; 'auto': 'test' where there is such a split,
    # otherwise 'holdout', of a fifth of the training images if data.holdout is 0.
    data.eval_split = 'test'
    data.pipeline = 'auto'  # or 'resident' on the devices, 'host'; 'auto' decides by size
    data.resident_bytes = 2**30  # ('auto' only) largest split that is copied to every device
    # The network's input: the side of a square, or (height, width). If not set, and init.checkpoint
    # is: that of its weights.
    data.image_size = placeholder(object)
    data.channels = 3  # 1 or 3
    # Shorter side of the rectangle, shaped like image_size, that an image is scaled to cover before
    # the central crop; None: that of image_size.
    data.eval_resize = placeholder(int)
    # (classification only) side of the crop over that side, instead of eval_resize: 0.875 is 256
    # for 224.
    data.eval_crop_share = placeholder(float)
    # (classification only) image_size of evaluation and prediction; None: as in training.
    data.eval_size = placeholder(object)
    data.eval_filter = 'bilinear'  # or 'bicubic', of scaling; both are antialiased as in Pillow
    data.train_filter = 'bilinear'  # or 'bicubic', or 'random': one of the two for each image
    data.train_crop = 'pad'  # or 'random_resized', 'scale_jitter' (the paper, on ImageNet)
    data.crop_padding = 0  # ('pad' only) pixels of padding on each side
    data.crop_scale = (0.08, 1.0)  # ('random_resized' only) share of the area
    data.crop_ratio = (3 / 4, 4 / 3)  # ('random_resized' only) width / height
    data.jitter_sides = (256, 480)  # ('scale_jitter' only) range of the shorter side
    data.flip = False  # random horizontal flips
    data.color_noise = 0.0  # standard deviation of PCA colour noise; the paper: 0.1
    data.randaugment_layers = 0  # operations per image; 0: no RandAugment
    data.randaugment_magnitude = 9  # out of 10
    data.randaugment_noise = 0.5  # standard deviation of the magnitude
    data.mixup_alpha = 0.0  # parameter of the Beta distribution of weights; 0: no mixup
    data.cutmix_alpha = 0.0  # the same for CutMix; with both, each pair of images gets one
    # 'per_channel' or 'per_pixel_mean' (the paper): statistics of the training split; 'imagenet':
    # the usual constants; or 'none'.
    data.normalization = 'per_channel'
    # (detection only) Images are scaled to fit into image_size, which then is a canvas; or, with
    # short_sides, until the shorter side has one of these lengths (at random in training; the last
    # one in evaluation) and the longer one at most long_side.
    data.short_sides = ()
    data.long_side = placeholder(int)  # None: as long as the canvas allows
    # (detection only) More canvases, such as ((1344, 800),): an image gets the one on which it is
    # largest, and all images of a batch have the same canvas.
    data.canvases = ()
    # (detection, localization only) places for the objects of an image
    data.max_objects = 100
    # (detection only) Training sees a random window of the scaled image: (height, width) or the
    # side of a square, and the places for its objects; None: the whole image, and max_objects.
    data.window = placeholder(object)
    data.window_objects = placeholder(int)
    data.on_unreadable = 'error'  # or 'skip': leave the image out and count it in the log
    data.workers = 0  # decoding processes; 0: threads of the main process only
    data.threads = placeholder(int)  # decoding threads per process; None: all cores, divided up
    data.chunk_size = 16  # images that a thread decodes at a time
    data.batches_ahead = 2  # batches decoded in advance, and as many on the devices
    data.cache = '~/.cache/resnet_jax/data'  # for decoded images and statistics
    data.bucket_cache_bytes = 2**38  # ('shards' in a bucket only) limit of copies in data.cache

    loss = config.loss = ConfigDict()
    # (classification only) 'cross_entropy' of the softmax, or 'binary': a logistic loss per class.
    loss.name = 'cross_entropy'
    loss.label_smoothing = 0.0
    # ('binary' only) targets above it become 1, all others 0; None: mixed images have soft targets.
    loss.target_threshold = placeholder(float)

    optimizer = config.optimizer = ConfigDict()
    # 'sgd', 'lars', 'lamb', 'adamw', or one of optax or optax.contrib that takes a learning rate.
    optimizer.name = 'sgd'
    optimizer.arguments = ()  # its other arguments: pairs, such as (('b1', 0.95), ('eps', 1e-6))
    optimizer.momentum = 0.9  # ('sgd' and 'lars' only), as the next two
    optimizer.momentum_form = 'paper'  # learning rate inside the momentum (Caffe), or 'pytorch'
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4
    optimizer.decay_bn_and_bias = True  # the paper decays every weight
    optimizer.clip_norm = placeholder(float)  # largest global norm of the gradient
    optimizer.accumulation_steps = 1  # compute gradients of a batch in this many parts
    optimizer.ema_decay = placeholder(float)  # decay of the averaged parameters for evaluation
    optimizer.ema_warmup = True  # increase the decay over time, from 0.1 to ema_decay

    schedule = config.schedule = ConfigDict()
    schedule.name = 'steps'  # or 'plateau', 'cosine', 'constant'
    schedule.learning_rate = FieldReference(0.1)
    schedule.boundaries = ()  # ('steps' only) where the learning rate is multiplied by factor
    schedule.factor = 0.1  # ('steps' and 'plateau' only)
    schedule.plateau_window = placeholder(int)  # steps over which the training error is averaged
    schedule.plateau_patience = 3  # windows without improvement before the learning rate drops
    schedule.plateau_threshold = 1e-2  # least improvement that counts, relative to the best error
    schedule.plateau_min_factor = 1e-3  # smallest product of all factors
    schedule.warmup = 'none'  # or 'linear', 'error'
    schedule.warmup_steps = FieldReference(0)  # ('linear' only)
    schedule.warmup_from = 0.0  # ('linear' only) learning rate from which it increases
    schedule.warmup_learning_rate = 0.01  # ('error' only) until the error is below warmup_error
    schedule.warmup_error = 80.0  # ('error' only) training error in percent
    schedule.warmup_window = 20  # ('error' only) steps over which the training error is averaged

    evaluation = config.eval = ConfigDict()
    # None: at the end only; in a run with num_epochs, ten times.
    evaluation.every_steps = placeholder(int)
    evaluation.batch_size = placeholder(int)  # images per step, capped at the size of the split
    # Training batches, at most one epoch, over which batch-norm statistics are averaged for the
    # last evaluation; 0: use the running averages.
    evaluation.recalibrate_batches = 0
    # (detection only) average precision of 'coco', 'voc07' (11 points) or 'voc12' (area).
    evaluation.metric = 'coco'
    evaluation.object_areas = (32**2, 96**2)  # ('coco' only) where small and medium objects end

    checkpoint = config.checkpoint = ConfigDict()
    # A checkpoint also precedes every evaluation; None: only those; 0: as often as the measured
    # times ask for, see resnet_jax/training/interval.py.
    checkpoint.every_steps = placeholder(int)
    checkpoint.every_steps = 0
    checkpoint.keep_last = 2
    checkpoint.keep_best = True  # also keep the best one, for a classifier by top-1 error

    config.log = ConfigDict()
    config.log.every_steps = 100

    profile = config.profile = ConfigDict()
    profile.start_step = 10
    profile.num_steps = 0  # number of steps traced to workdir/profile; 0: none

    mesh = config.mesh = ConfigDict()
    mesh.data = -1  # devices for data parallelism; -1: all remaining ones
    mesh.model = 1  # devices that parameters are sharded over
    mesh.parameters = 'replicated'  # or 'fsdp': shard every array over the axis 'data'
    mesh.rules = ()  # overrides: pairs (regular expression on the path, axis per dimension)

    # Folder for compiled programs, shared by all runs and kept below 2 GiB; '': no cache.
    config.compilation_cache = '~/.cache/resnet_jax/xla'

    # Of config files that take a number of chips, such as configs/imagenet_pod.py.
    config.topology = ''  # that `compile` assumes, such as 'v5e:16x16'
    config.derived = ()  # (field, value, where it comes from), printed before a run
    return config.lock()  # a misspelt field in a config file is an error


# Fields that may be None in a run; all others must be set.
OPTIONAL_FIELDS = (
    'num_epochs',
    'model.stem_width', 'model.bottleneck_width', 'model.virtual_batch_size', 'data.eval_resize',
    'data.threads', 'data.eval_crop_share', 'data.eval_size', 'loss.target_threshold',
    'optimizer.clip_norm', 'optimizer.ema_decay',
    'schedule.plateau_window', 'eval.every_steps', 'checkpoint.every_steps', 'data.long_side',
    'data.window', 'data.window_objects',
    *(f'model.detector.{name}' for name in DETECTOR_FIELDS),
)
# Fields with a few values. Those of `model` and `data` are checked where they are used.
CHOICES = {
    'xla_preset': ('none', 'cpu', 'gpu', 'tpu'),  # as in xla/flags.py
    'loss.name': ('cross_entropy', 'binary'),
    'optimizer.momentum_form': ('paper', 'pytorch'),
    'schedule.name': ('steps', 'plateau', 'cosine', 'constant'),  # as in training/schedules.py
    'schedule.warmup': ('none', 'linear', 'error'),
    'mesh.parameters': ('replicated', 'fsdp'),
    'eval.metric': ('coco', 'voc07', 'voc12'),
}
# Fields with a lower bound.
LEAST = {
    'seed': 0, 'model.width': 1, 'model.stem_width': 1, 'model.num_classes': 1,
    'model.bottleneck_width': 1, 'model.groups': 1,
    'num_steps': 1, 'num_epochs': 1, 'batch_size': 1, 'steps_per_call': 1, 'data.channels': 1,
    'data.crop_padding': 0, 'data.holdout': 0, 'data.resident_bytes': 0,
    'data.bucket_cache_bytes': 0, 'data.eval_resize': 1,
    'data.color_noise': 0, 'data.randaugment_layers': 0, 'data.randaugment_magnitude': 0,
    'data.randaugment_noise': 0, 'data.mixup_alpha': 0, 'data.cutmix_alpha': 0,
    'data.workers': 0, 'data.threads': 1, 'data.chunk_size': 1, 'data.batches_ahead': 1,
    'model.virtual_batch_size': 1, 'optimizer.accumulation_steps': 1,
    'schedule.plateau_window': 1, 'schedule.plateau_patience': 1, 'schedule.warmup_steps': 0,
    'schedule.warmup_window': 1, 'eval.every_steps': 1, 'eval.batch_size': 1,
    'eval.recalibrate_batches': 0, 'checkpoint.every_steps': 0, 'checkpoint.keep_last': 1,
    'log.every_steps': 1, 'profile.start_step': 0, 'profile.num_steps': 0,
    'model.bn_epsilon': 0, 'optimizer.weight_decay': 0, 'schedule.plateau_threshold': 0,
    'schedule.plateau_min_factor': 0, 'schedule.warmup_learning_rate': 0,
    'schedule.warmup_from': 0,
    'schedule.warmup_error': 0, 'mesh.model': 1, 'data.long_side': 1, 'data.max_objects': 1,
    'data.window_objects': 1, 'model.localizer.anchors_per_image': 1,
    'model.localizer.proposals': 1, 'model.localizer.crop_size': 4, 'model.localizer.reduction': 1,
}
# Fields that must be at least 0 and below 1.
SHARES = (
    'model.dropout_rate', 'model.stochastic_depth', 'model.bn_momentum', 'loss.label_smoothing',
    'loss.target_threshold', 'optimizer.momentum', 'optimizer.ema_decay', 'schedule.factor',
)
# Fields that must be above 0.
POSITIVE = ('optimizer.clip_norm', 'schedule.learning_rate')
# Fields with an upper bound: steps are counted in 32 bits, and a machine that is asked for absurdly
# many images, threads or processes ends without an error message.
STEPS, IMAGES, MOST_PIXELS = 2**31 - 1, 2**20, 2**14
MOST = {
    'seed': 2**32 - 1, 'num_steps': STEPS, 'num_epochs': STEPS, 'steps_per_call': 10_000,
    'batch_size': IMAGES, 'eval.batch_size': IMAGES, 'model.virtual_batch_size': IMAGES,
    'model.width': 2**14, 'model.stem_width': 2**14, 'model.num_classes': 2**24,
    'model.bottleneck_width': 2**16, 'model.groups': 2**16,
    'data.eval_resize': MOST_PIXELS, 'data.holdout': 2**30,
    'data.randaugment_layers': 100, 'data.workers': 1024, 'data.threads': 1024,
    'data.chunk_size': IMAGES, 'data.batches_ahead': 1024,
    'optimizer.accumulation_steps': IMAGES, 'schedule.plateau_window': STEPS,
    'schedule.plateau_patience': STEPS, 'schedule.warmup_steps': STEPS,
    'schedule.warmup_window': STEPS, 'eval.every_steps': STEPS, 'eval.recalibrate_batches': STEPS,
    'checkpoint.every_steps': STEPS, 'checkpoint.keep_last': STEPS, 'log.every_steps': STEPS,
    'profile.start_step': STEPS, 'profile.num_steps': STEPS,
    'data.long_side': MOST_PIXELS, 'data.max_objects': 10_000, 'data.window_objects': 10_000,
    'model.localizer.anchors_per_image': 10_000, 'model.localizer.proposals': 10_000,
    'model.localizer.crop_size': MOST_PIXELS, 'model.localizer.reduction': 16,
}
# Fields whose values `models.create` checks, and those that `data` checks.
OF_MODELS = ('model.family', 'model.depth', 'model.shortcut', 'model.stride_in', 'model.pool_pad',
             'model.dtype', 'model.remat', 'model.detector.kind', 'model.detector.preset',
             'model.localizer.anchor_sizes', 'model.localizer.anchor_ratios',
             *(f'model.detector.{name}' for name in DETECTOR_FIELDS))
OF_DATA = ('data.source', 'data.eval_split', 'data.pipeline', 'data.train_crop', 'data.crop_scale',
           'data.crop_ratio', 'data.jitter_sides', 'data.train_filter', 'data.eval_filter',
           'data.normalization', 'data.on_unreadable', 'data.bad_boxes')
# Files, folders and names: what is missing is reported where it is looked up.
FREE = ('task', 'optimizer.name', 'init.checkpoint', 'init.resume_from', 'data.path',
        'data.tfds_name', 'data.class_list', 'data.label_file', 'data.train_list',
        'data.eval_list', 'data.cache', 'compilation_cache', 'topology', 'derived')
