"""What CoSA is scored on (arXiv 2402.17891): its segmentation, its CAMs and its classifier.

Beside mIoU, of predictions as they are, in 'more' of results.json:

- 'miou_masked': of predictions from which the classes that an image does not have, by its true
  image-level labels, are removed first. It is the metric of the paper's tables;
- 'miou_crf', with `eval.crf`: of these behind a CRF, see `css_jax.methods.cosa_crf`;
- 'cam_miou': of the CAMs of the classes that an image has, background where all are up to 0.5;
  'cam_miou_best' with the best of `THRESHOLDS`, 'cam_threshold_best', and 'cam_miou_swept' with
  each one. 'cam_aux_...' are those of the early features. CAMs are merged over `eval.scales` and
  mirror images, whatever `eval.flip` is;
- 'classifier_map': mean average precision of the classifier, of images at the first of
  `eval.scales`, over the classes that any image has.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from css_jax.methods import cosa_cams, cosa_crf, views
from css_jax.methods.method import Evaluation, More, Seen
from css_jax.models.backbones import PLAIN
from css_jax.ops import cam, metrics, resize
from css_jax.state import Context, Variables

THRESHOLDS = np.arange(1, 20, dtype=np.float32) / 20  # of background; 0.5 is the authors'
_AUTHORS = THRESHOLDS.tolist().index(0.5)
_NO_SCORES = [None] * len(THRESHOLDS)


def predict(variables: Variables, images: Array, ctx: Context) -> Array:
    """Return the head 'logits' at the images' size, [B, H, W, C], resized by half pixels.

    Patches leave pixels out where they do not divide a side: it is padded by reflection first. The
    protocol 'resized' resizes by itself, from the head's own grid.
    """
    if ctx.config.eval.protocol == 'resized':
        return ctx.evaluate(variables, images)['logits']
    size = images.shape[1:3]
    if ctx.config.model.backbone in PLAIN:
        stride = ctx.config.model.output_stride
        down, right = (-side % stride for side in size)
        images = jnp.pad(images, ((0, 0), (0, down), (0, right), (0, 0)), mode='reflect')
    logits = ctx.evaluate(variables, images)['logits']
    return resize.half_pixel(logits, images.shape[1:3])[:, : size[0], : size[1]]


def measures(variables: Variables, seen: Seen, ctx: Context) -> dict[str, Array]:
    """Return the sums that `scores` needs of one batch."""
    classes, present = seen.logits.shape[-1], seen.classes[:, 1:]
    masked = cam.masked(seen.logits, present)
    found = {'masked': metrics.confusion(seen.labels, masked.argmax(-1), classes)}
    if ctx.config.eval.crf:
        rgb = jnp.rint(views.levels(seen.images, ctx)).clip(0, 255).astype(jnp.uint8)
        refined = cosa_crf.refined(rgb, jax.nn.softmax(masked), seen.sizes)
        found['crf'] = metrics.confusion(seen.labels, refined, classes)

    images, size = seen.images, seen.images.shape[1:3]
    resized = ctx.config.eval.protocol == 'resized'
    if resized:
        images = resize.part_to(images, seen.sizes, seen.window)
    every = cosa_cams.passes(variables, images, ctx.config.eval.scales, ctx)
    for kind, maps in cosa_cams.cams(every, images.shape[1:3], ctx).items():
        maps = resize.to_part(maps, seen.sizes, size) if resized else maps
        found[kind] = swept(maps, present, seen.labels)
    of_images = every[0]['class'][: len(images)]
    found['classifier'] = metrics.score_histogram(of_images, present, seen.counted)
    return found


def scores(sums: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the scores by their names, see above."""
    found = {'miou_masked': metrics.scores(sums['masked'])['miou']}
    if 'crf' in sums:
        found['miou_crf'] = metrics.scores(sums['crf'])['miou']
    for kind in cosa_cams.KINDS:
        miou = [metrics.scores(matrix)['miou'] for matrix in confusions(sums[kind])]
        best = int(np.argmax([-1 if value is None else value for value in miou]))
        known = miou[best] is not None
        found[f'{kind}_miou'] = miou[_AUTHORS]
        found[f'{kind}_miou_best'] = miou[best]
        found[f'{kind}_threshold_best'] = round(float(THRESHOLDS[best]), 2) if known else None
        found[f'{kind}_miou_swept'] = miou
    precision = metrics.average_precision(sums['classifier'])
    known = precision[np.isfinite(precision)]
    found['classifier_map'] = float(known.mean()) if known.size else None
    # Without masks there is the classifier alone.
    return {name: value for name, value in found.items() if value not in (None, _NO_SCORES)}


def swept(maps: Array, present: Array, labels: Array) -> Array:
    """Count pixels by their true class, by their CAMs' class, and by how large their CAM is.

    Args:
        maps: CAMs, [B, H, W, K] in [0, 1].
        present: [B, K].
        labels: [B, H, W] int32, -1 where a pixel does not count.

    Returns:
        [C, C, T + 1] int32: true class, the class with the largest CAM of those that the image has,
        and the number of the T `THRESHOLDS` that this CAM is above.
    """
    classes, count = present.shape[1] + 1, len(THRESHOLDS) + 1
    winner = cam.from_cam(maps, present, threshold=0.0)
    above = (cam.largest(maps, present)[..., None] > THRESHOLDS).sum(-1)
    index = (labels * classes + winner) * count + above
    index = jnp.where(labels >= 0, index, classes * classes * count)
    counts = jnp.zeros(classes * classes * count + 1, jnp.int32).at[index.ravel()].add(1)
    return counts[:-1].reshape(classes, classes, count)


def confusions(counts: np.ndarray) -> np.ndarray:
    """Return the confusion matrices [T, C, C] of the CAMs at each threshold.

    Args:
        counts: [C, C, T + 1] of `swept`, summed.
    """
    found = []
    for place in range(1, counts.shape[-1]):
        matrix = counts[..., place:].sum(-1)
        matrix[:, 0] += counts[..., :place].sum((1, 2))  # not above the threshold: background
        found.append(matrix)
    return np.stack(found)


def evaluations(config: ConfigDict) -> dict[str, Evaluation]:
    """Evaluate `config.eval.network` on `config.eval.dataset`."""
    c = config.eval
    found = Evaluation(
        dataset=c.dataset,
        split=c.split,
        classes=config.num_classes,
        predict=predict,
        network=c.network,
        more=More(measures, scores),
    )
    return {c.dataset.partition('/')[0]: found}
