"""Images of the split beside their truth and each run's prediction."""

from collections.abc import Mapping, Sequence

import numpy as np

from css_jax.evaluation import pictures
from css_jax.report import page
from css_jax.report.page import text
from css_jax.report.predictions import Predicted, Sample

_MOST = 4  # worst images, and best


def section(
    sample: Sample, predicted: Mapping[str, Predicted], names: Sequence[str], colours: np.ndarray
) -> str:
    """Return evenly spread images, and the worst and best ones by the runs' mean mIoU.

    Args:
        sample: the images.
        predicted: run -> its predictions.
        names: of the classes.
        colours: of the classes, uint8 [C, 3] RGB.
    """

    def rows(places: Sequence[int]) -> str:
        found = [_row(sample, predicted, place, colours) for place in places]
        return page.pictures_table(['image', 'truth', *predicted], found)

    whole, count = len(sample.source), len(sample.indices)
    body = page.legend(names, colours)
    body += '<h3>Evenly spread over the split</h3>' + rows(range(sample.spread))
    miou = np.array([p.miou for p in predicted.values()], float)  # [runs, images], NaN for None
    scored = np.flatnonzero(np.isfinite(miou).all(0))
    order = scored[np.argsort(miou[:, scored].mean(0), kind='stable')].tolist()
    if len(order) < 2:
        return body
    most = min(_MOST, len(order) // 2)
    of = f'all {whole}' if count == whole else f'{count} of the {whole}'
    body += '<h3>Worst images</h3>' + rows(order[:most])
    body += '<h3>Best images</h3>' + rows(order[-most:][::-1])
    mean = ', a mean over the runs' * (len(predicted) > 1)
    means = ', '.join(f'{text(n)} {page.percent(p.together)}' for n, p in predicted.items())
    return body + page.note(
        f'Worst and best are by the mIoU of the image{mean}, of {of} images of '
        f'{text(sample.source.dataset)}, split {text(sample.source.split)}. Below each prediction '
        f'is its mIoU in %, over the classes of the image. mIoU of these images together: {means}.'
    )


def _row(
    sample: Sample, predicted: Mapping[str, Predicted], place: int, colours: np.ndarray
) -> list[str]:
    example, name = sample.examples[place], sample.source.ids[sample.indices[place]]
    # Without what was padded.
    height, width = sample.source.sizes[sample.indices[place]].tolist()
    truth = pictures.colourise(example['label'][:height, :width], colours)
    cells = [
        page.image(example['image'][:height, :width], f'image {name}', photograph=True)
        + f'<small>{text(name)}</small>',
        page.image(truth, f'truth of {name}'),
    ]
    for run, found in predicted.items():
        drawn = pictures.colourise(found.labels[place][:height, :width], colours)
        score = page.percent(found.miou[place], 1)
        cells.append(page.image(drawn, f'{run} on {name}') + f'<small>mIoU {score}</small>')
    return cells
