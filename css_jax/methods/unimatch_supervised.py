"""UniMatch's baseline: the labelled images alone, with its network, its optimiser and its views.

Images are resized, cropped and mirrored, no more, and the student is what is evaluated. The authors
double the batch. With DINOv2 they repeat a list of labelled images that is shorter, so that an
epoch has 3,000 of them (ADE20K 6,000, COCO 30,000); V1's baseline does not.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from css_jax.keys import Key, of_dataset
from css_jax.methods import epochs, supervised, teacher, unimatch_views, views
from css_jax.methods import unimatch_settings as settings
from css_jax.methods.method import Method

KEYS = {
    **views.SUPERVISED,
    'unimatch.epochs': settings.KEYS['unimatch.epochs']._replace(
        default=settings.by_optimizer(
            settings.KEYS['unimatch.epochs'].default, settings.V1_KEYS['unimatch.epochs'].default
        )
    ),
    'unimatch.images': settings.KEYS['unimatch.images']._replace(
        default=epochs.images('labelled'), comment='labelled ones, counted'
    ),
    'unimatch.repeated': Key(
        settings.by_optimizer(
            of_dataset(0, voc=3000, cityscapes=3000, ade20k=6000, coco=30_000), 0
        ),
        'images of an epoch at least, to which fewer are repeated', like=3000, range=(0, 10**9),
    ),
    'unimatch.optimizer': settings.KEYS['unimatch.optimizer'],
    'unimatch.head_rate': settings.KEYS['unimatch.head_rate'],
    'optimizer.momentum': settings.KEYS['optimizer.momentum'],
    'optimizer.nesterov': settings.KEYS['optimizer.nesterov'],
}  # fmt: skip


def steps_per_epoch(config: Any) -> int:
    """Return S of the labelled images."""
    images = max(config.unimatch.images, config.unimatch.repeated)
    return settings.loader_steps(images, config.data.streams.labelled.batch_size)


def _warnings(config: ConfigDict, images: Mapping[str, int]) -> list[str]:
    del images
    return epochs.warnings(config, 'unimatch', steps_per_epoch(config)) + settings.fast(config)


METHOD = Method(
    streams={'labelled': 'mask'},
    outputs=supervised.outputs,
    targets=unimatch_views.labels_alone,
    loss=supervised.loss,
    keys=KEYS,
    defaults={
        **settings.DEFAULTS,
        'steps': epochs.steps('unimatch', steps_per_epoch),
        'supervised.ohem_kept': 50_000,  # 200,000 of the four images of a GPU
        'eval.network': 'student',
        'data.streams.*.batch_size': of_dataset(voc=32, cityscapes=16, ade20k=16, coco=32),
    },
    init_teacher=teacher.none,
    update_teacher=teacher.keep,
    optimizer=settings.optimizer,
    warnings=_warnings,
)
