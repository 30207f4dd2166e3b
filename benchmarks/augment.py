"""Times the strong view and its parts under jit: python -m benchmarks.augment."""

import statistics
import time

import jax
import jax.numpy as jnp

from css_jax import config
from css_jax.ops import augment

MEAN, STD = config.IMAGENET_MEAN, config.IMAGENET_STD
NUM_CLASSES = 21
REPEATS = 15


def next_example(tree):
    return jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), tree)


def parts(settings: augment.Augment) -> dict:
    """Gives each part as a function of (keys, images, maps)."""
    jitter = {
        name: getattr(settings, name)
        for name in ('jitter_prob', 'brightness', 'contrast', 'saturation', 'hue')
    }

    def mix(kind):
        options = {'label': 'label', 'num_classes': NUM_CLASSES, 'fill': MEAN}
        return lambda *view: augment.mix(*view, next_example, kind=kind, **options)

    def strong_view(keys, images, maps):
        return augment.strong_view(
            keys,
            images,
            maps,
            settings,
            label='label',
            num_classes=NUM_CLASSES,
            next_example=next_example,
            mean=MEAN,
            std=STD,
        )

    return {
        'resize_crop': lambda *view: augment.resize_crop(*view, settings.resize),
        'cutmix': mix('cutmix'),
        'classmix': mix('classmix'),
        'color': lambda keys, images, maps: augment.color(keys, images, **jitter),
        'blur': lambda keys, images, maps: augment.blur(
            keys, images, prob=settings.blur_prob, sigma=settings.blur_sigma
        ),
        'flip': lambda *view: augment.flip(*view, prob=settings.flip_prob),
        'photometric': lambda *view: augment.photometric(*view, settings, mean=MEAN, std=STD),
        'strong_view': strong_view,
    }


def median_ms(function, *arguments) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    settings = augment.Augment(**config.default().augment)
    print(f'median of {REPEATS} in ms, jitted, on {jax.devices()[0].device_kind}')
    for batch, size in ((8, 64), (4, 512)):
        keys = jax.random.split(jax.random.key(0), batch)
        shape = (batch, size, size)
        images = jax.random.uniform(jax.random.key(1), (*shape, 3))
        maps = {
            'label': jax.random.randint(jax.random.key(2), shape, -1, NUM_CLASSES),
            'indicator': jax.random.uniform(jax.random.key(3), shape),
        }
        for name, function in parts(settings).items():
            spent = median_ms(jax.jit(function), keys, images, maps)
            print(f'{batch} x {size} x {size}  {name:12} {spent:8.2f}', flush=True)


if __name__ == '__main__':
    main()
