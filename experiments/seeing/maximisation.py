"""Images that maximise a channel or the score of a class.

Gradient ascent on the pixels: K. Simonyan et al., "Deep Inside Convolutional Networks", 2014; with
the regularisers of J. Yosinski et al., "Understanding Neural Networks Through Deep Visualization",
2015 (decay and blur), and of C. Olah et al., "Feature Visualization", 2017 (jitter, and an image
parametrised by waves that favours low frequencies, in colours as correlated as those of real ones).
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.seeing import pictures
from experiments.seeing.activations import SCORES, channel_means, looped, on_device
from experiments.seeing.effort import DEFAULT
from experiments.seeing.section import Picture, Section
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import BATCH_SIZE, normalized

RATE = 0.05  # of Adam
CONTRAST = 4.0  # scores of the sigmoid that makes pixels, for one unit of the waves
RANDOM_IMAGES = 16  # that an optimised image is compared with
CLASSES = 10  # shown
IMAGES = 512  # of the test split, at most, for comparison


class Maximised(NamedTuple):
    """Images that were optimised, one for each target.

    Attributes:
      images: from 0 to 1, float32 [n, H, W, C].
      activation: of the target, the mean over all positions, float32 [n].
      random_activation: the same for images of noise that are as long as the optimised one once
        they are normalised (Euclidean norm of all pixels), float32 [n, random images].
    """

    images: np.ndarray
    activation: np.ndarray
    random_activation: np.ndarray


def maximise(model: nn.Module, weights: tuple[Any, Any], stage: str, targets: np.ndarray,
             shape: tuple[int, int, int], key: jax.Array, *, steps: int = DEFAULT.steps,
             starts: int = DEFAULT.starts, decay: float = 0.03, blur: float = 0.03,
             colors: np.ndarray | None = None) -> Maximised:
    """Optimises one image for each target channel, from several starts, and keeps the best.

    Args:
      model: a network with a head.
      weights: (variables, normalisation).
      stage: 'stem', 'stage1', …, or 'head', whose channels are the classes.
      targets: channels, int [n].
      shape: (H, W, C) of the images.
      key: of the first images, the jitter and the noise.
      steps: of Adam.
      starts: images of noise to start from.
      decay: share of every wave that is taken away at each step, which pulls pixels to mid-grey.
      blur: the share more that the fastest waves lose, the slower ones less by the square.
      colors: what mixes C independent waves to the C channels of the pixels, float [C, C]; see
        `color_mixture`. By default the channels are independent.
    """
    colors = np.eye(shape[-1]) if colors is None else colors
    found = _maximise(model, weights, stage, jnp.asarray(targets, jnp.int32), shape, key, steps,
                      starts, jnp.float32(decay), jnp.float32(blur),
                      jnp.asarray(colors, jnp.float32))
    return Maximised(*map(np.asarray, found))


@functools.partial(jax.jit, static_argnames=('model', 'stage', 'shape', 'steps', 'starts'))
def _maximise(model, weights, stage, targets, shape, key, steps, starts, decay, blur, colors):
    """What `Maximised` holds."""
    first_key, jitter_key, noise_key = jax.random.split(key, 3)

    def activation(images, targets):
        means = channel_means(model, weights, images, stage)
        return jnp.take_along_axis(means, targets[:, None], 1)[:, 0]

    n = len(targets)
    repeated = jnp.tile(targets, starts)
    tried = _ascend(lambda images: activation(images, repeated).sum(), (n * starts, *shape),
                    first_key, jax.random.split(jitter_key, steps), decay, blur, colors)
    reached = activation(tried, repeated).reshape(starts, n)
    best = reached.argmax(0)
    images = tried.reshape(starts, n, *shape)[best, jnp.arange(n)]
    noise = jax.lax.map(
        lambda key: activation(noise_of_length(key, images, weights[1]), targets),
        jax.random.split(noise_key, RANDOM_IMAGES))
    return images, reached.max(0), noise.T


def _ascend(objective, shape, first_key, jitter_keys, decay, blur, colors):
    """Images from 0 to 1, float32 [n, H, W, C], one step for each of the keys of the jitter."""
    n, height, width, channels = shape
    frequency = jnp.hypot(jnp.fft.fftfreq(height)[:, None], jnp.fft.rfftfreq(width)[None, :])
    slowest = 1 / max(height, width)
    # Waves as natural images have them: their amplitude falls with their frequency.
    amplitude = (1 / jnp.maximum(frequency, slowest))[..., None]
    amplitude *= jnp.sqrt(height * width / jnp.square(amplitude).mean())  # pixels of deviation 1
    kept = (1 - decay) * (1 - blur * jnp.square(frequency / frequency.max()))[..., None]
    jitter = max(1, min(height, width) // 16)  # pixels in either direction

    def pixels(waves):
        spectrum = jax.lax.complex(*waves) * amplitude
        image = jnp.fft.irfft2(spectrum, (height, width), axes=(1, 2))
        return jax.nn.sigmoid(CONTRAST * image @ colors)

    def loss(waves, shift):
        return -objective(jnp.roll(pixels(waves), shift, (1, 2)))

    optimizer = optax.adam(RATE)

    def step(state, key):
        waves, opt_state = state
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        gradient = jax.grad(loss)(waves, shift)
        updates, opt_state = optimizer.update(gradient, opt_state)
        waves = optax.apply_updates(waves, updates)
        return (jax.tree.map(lambda x: x * kept, waves), opt_state), None

    size = (2, n, *frequency.shape, channels)
    waves = tuple(0.3 * jax.random.normal(first_key, size))
    (waves, _), _ = jax.lax.scan(step, (waves, optimizer.init(waves)), jitter_keys)
    return pixels(waves)


def color_mixture(images: np.ndarray) -> np.ndarray:
    """Mixes independent channels into colours as correlated as those of some images.

    The symmetric square root of the covariance of their pixels, scaled to a mean variance of 1.

    Args:
      images: uint8 or float [N, H, W, C].

    Returns:
      float64 [C, C]; the identity if all pixels are alike.
    """
    channels = images.shape[-1]
    covariance = np.cov(images.reshape(-1, channels).T.astype(float)).reshape(channels, channels)
    if not covariance.trace():
        return np.eye(channels)
    values, vectors = np.linalg.eigh(covariance / covariance.trace() * channels)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def noise_of_length(key: jax.Array, images: jax.Array, normalization) -> jax.Array:
    """Gaussian noise that is as long as the images, as the first layer sees both.

    Args:
      key: of the noise.
      images: from 0 to 1, float32 [N, H, W, C], of the size that a mean image has.
      normalization: 'mean' and 'std'.

    Returns:
      Pixels in units of the full range, float32 [N, H, W, C]; they may lie outside of it.
    """
    def length(x):
        return jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True))

    noise = jax.random.normal(key, images.shape)
    seen = noise * (length(normalized(images, normalization)) / length(noise))
    return seen * normalization['std'] + normalization['mean']


def section(network: Classifier, images: np.ndarray, *, seed: int = 0,
            side: int | None = DEFAULT.side, steps: int = DEFAULT.steps,
            starts: int = DEFAULT.starts, channels: int = DEFAULT.channels) -> Section:
    """Images that maximise the classes and some channels of every stage, beside test images.

    Args:
      network: a trained network.
      images: of the test split, uint8 [N, H, W, C].
      seed: of the first images and the jitter.
      side, steps, starts, channels: see `Effort`.
    """
    images = images[:IMAGES]
    shape = images.shape[1:] if side is None else (side, side, images.shape[-1])
    model, weights, colors = looped(network.model), on_device(network), color_mixture(images)
    stages = [stage for stage in network.stages if stage.startswith('stage')]
    found, numbers, told = {}, {}, []
    for number, stage in enumerate([*stages, SCORES]):
        means = _channel_means(network, images, stage)
        # Of a stage, the channels that tell the images apart most; of the scores, the first ones.
        targets = (np.arange(means.shape[1])[:CLASSES] if stage == SCORES
                   else np.argsort(-means.std(0), kind='stable')[:channels])
        result = maximise(model, weights, stage, targets, shape,
                          jax.random.fold_in(jax.random.key(seed), number), steps=steps,
                          starts=starts, colors=colors)
        best = means[:, targets]
        found[stage] = result, images[best.argmax(0)]
        if stage != SCORES:
            over_noise = np.median(result.activation / result.random_activation.mean(1))
            over_best = np.median(result.activation / best.max(0))
            numbers |= {f'maximised_over_random_{stage}': float(over_noise),
                        f'maximised_over_best_image_{stage}': float(over_best)}
            told.append(f'{over_noise:.1f} and {over_best:.1f} in {stage}')
    result, _ = found[SCORES]
    names = network.classes[:CLASSES]
    probability = network.predict(result.images)[np.arange(len(names)), np.arange(len(names))]
    numbers['maximised_class_probability'] = float(np.median(probability))
    numbers['maximised_class_score'] = float(np.median(result.activation))
    caption = (
        f'Every image has {shape[0]} x {shape[1]} pixels and was optimised in {steps} steps'
        f'{f", from {starts} images of noise, and is the best of them" if starts > 1 else ""}. '
        'For the classes '
        f'{", ".join(names)}, the network gives the class of each image a median probability of '
        f'{100 * numbers["maximised_class_probability"]:.1f} % (lowest: '
        f'{100 * probability.min():.1f} %); the median score is '
        f'{numbers["maximised_class_score"]:.1f}, and that of the best among {len(images)} test '
        f'images {np.median(best.max(0)):.1f}.\n\n'
        'For each stage, the channels that differ most from image to image are shown. In the '
        f'median channel the optimised image reaches this many times the activation of noise of '
        f'the same norm, and of the best test image: {"; ".join(told)}.')
    return Section(
        title='Images that maximise a channel or a class', caption=caption,
        reference='C. Olah et al., Feature Visualization, 2017; J. Yosinski et al., Understanding '
                  'Neural Networks Through Deep Visualization, 2015',
        pictures={
            'maximised_classes': _picture(found, [SCORES], 'class'),
            'maximised_channels': _picture(found, stages, 'channel')},
        numbers=numbers)


def _channel_means(network: Classifier, images: np.ndarray, stage: str) -> np.ndarray:
    """As `channel_means`, for many images: float32 [N, channels]."""
    if stage == SCORES:
        return network.logits(images)
    batches = np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE))
    means = [network.features(batch, stage).astype(np.float32).mean((1, 2)) for batch in batches]
    return np.concatenate(means)


def _picture(found, stages: list[str], what: str) -> Picture:
    """Two rows per stage: the optimised images, and the test images that come closest."""
    rows, names = [], []
    for stage in stages:
        result, best = found[stage]
        side = result.images.shape[1:3]
        rows += [pictures.to_rgb(result.images), pictures.scaled(pictures.to_rgb(best), *side)]
        names += [_title(stage) + 'optimised', 'best test image']
    columns = max(map(len, rows))
    tiles = [pictures.enlarged(np.concatenate([row, np.full(
        (columns - len(row), *row.shape[1:]), pictures.PAPER, np.uint8)])) for row in rows]
    return Picture(
        pictures.mosaic(np.concatenate(tiles), columns, names),
        alt=f'Rows in pairs: images that were optimised for a {what}, and under each the test '
            f'image with the highest activation of this {what}.')


def _title(stage: str) -> str:
    return '' if stage == SCORES else f'{stage.replace("stage", "stage ")}: '
