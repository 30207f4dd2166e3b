"""Times the strong view and its parts: python -m benchmarks.augment."""

from collections.abc import Callable, Iterator

import jax

from benchmarks import step, timing
from css_jax import parallel
from css_jax.models.backbones import IMAGENET
from css_jax.ops import augment

MEAN, STD = IMAGENET
NUM_CLASSES = 21
SIZES = {'real': (16, 512, 512), 'small': (8, 64, 64)}  # of the images, [B, H, W]


def next_example(tree):
    return parallel.next_example(tree, None)


def parts(settings: augment.Augment) -> dict[str, Callable]:
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
        'strong_view': strong_view,
        'photometric': lambda *view: augment.photometric(*view, settings, mean=MEAN, std=STD),
        'resize_crop': lambda *view: augment.resize_crop(*view, settings.resize),
        'cutmix': mix('cutmix'),
        'classmix': mix('classmix'),
        'color': lambda keys, images, maps: augment.color(keys, images, **jitter),
        'blur': lambda keys, images, maps: augment.blur(
            keys, images, prob=settings.blur_prob, sigma=settings.blur_sigma
        ),
        'flip': lambda *view: augment.flip(*view, prob=settings.flip_prob),
    }


def rows(size: str) -> Iterator[tuple[str, timing.Row]]:
    """Gives a row a part, the whole first."""
    shape = SIZES[size]
    keys = jax.random.split(jax.random.key(0), shape[0])
    images = jax.random.uniform(jax.random.key(1), (*shape, 3))
    maps = {
        'label': jax.random.randint(jax.random.key(2), shape, -1, NUM_CLASSES),
        'indicator': jax.random.uniform(jax.random.key(3), shape),
    }
    caption = f'Images [B, H, W] = {list(shape)} and two maps, float32'
    whole = None
    settings = augment.Augment(**step.configuration('real').augment)  # the defaults
    for name, function in parts(settings).items():
        _, row = timing.measured(function, keys, images, maps)
        whole = whole or row['ms']
        shown = {key: row[key] for key in ('ms', 'temporary MiB', 'compile s')}
        yield caption, {'part': name, 'to strong_view': row['ms'] / whole, **shown}


if __name__ == '__main__':
    timing.main('Strong view', rows)
