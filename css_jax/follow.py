"""Where the paper and the reference program differ: `config.follow` picks a column for every row.

A key of the table that nobody sets is None until `resolve` fills it in, from the method's
`DEFAULTS` or from the column that `config.follow` names: 'default' | 'reference' | 'paper'. A key
that is set, by a file of configs/ or by a flag, stays. The published numbers come from the
reference, so our default mostly follows it, its slips aside. (Spec section 9 of the CSS paper,
arXiv 2307.09755; sections and equations are the paper's.)

- `contrastive.prototype_source`: rho averages the teacher's representations (paper, Eq. 2: labelled
  images and weak view) or the student's (reference: labelled images and strong view).
- `teacher.labelled_pass`: the teacher sees the labelled batch too (reference: in mix and cross, not
  in the baseline). With prototypes of the teacher it must.
- `unsupervised.loss`: 'thresholded', the mean over confident pixels (paper, Eq. 8), or 'weighted',
  each image weighted by its confident share (reference).
- `contrastive.valid_indicator`: delta_w holds for j_rep (paper, Sec. 3.4) or j_lgt (reference),
  where `indicator` is 'both'.
- `unsupervised.cross_indicator`: cross's delta_u holds for j_lgt (paper, Sec. 3.3) or j_rep, which
  at the reference's tau_sim makes L_u exactly 0, where `indicator` is 'both'.
- `contrastive.schedule`: lambda_c is a constant (paper), exp(-5 (e/200)^2) over e passes through
  the labelled images (reference), or the same curve over the run.
- `optimizer.floor`: smallest learning rate; none in the paper, 1e-4 in the reference.
- `eight_bit_indicators`: the reference keeps indicators as 8-bit images, so that 0.97 acts as
  0.9725 and 0.7 as 0.7020.
- `augment.partner`: an image is mixed with the next one of the global batch or, in the reference,
  with one of the first device's (a slip; on one device it is the same).
- `contrastive.unseen`: a class without a prototype stays out of the softmax or, in the reference,
  takes part as the zero vector (a slip).
- `contrastive.scope`: L_c over the global batch, where that is cheap (the shared bank), or per
  device.
- `contrastive.hard_threshold`: delta_s, 0.8 on similarity and 0.97 on confidence (the baseline's).
- `contrastive.similarity_temperature`: tau_sim. At the reference's 0.5 j_rep stays under 0.73 with
  21 classes, so where it is thresholded from below the default is 0.1.
- `steps`, `optimizer.learning_rate`, `eval.protocol`, a stream's `batch_size`, `crop`, `resize`:
  the numbers of Sec. 4.1 and of the reference's scripts, whose batches are 4 GPUs' in all. On
  Cityscapes the reference does not resize labelled images and validates on one random crop of each
  image (a slip).

What no column changes: the estimator of L_c (`contrastive.estimator=sampled` draws the paper's own
negatives), the host's filter (`data.resampling=pil`) and the rounding of the deep stem's pooling
(`model.stem_ceil_mode`) are the reference's where these are set.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

COLUMNS = ('default', 'reference', 'paper')
SELECTIVE_TEMPERATURE = 0.1  # tau_sim at which a threshold on j_rep from below can be met


def _scope(c: ConfigDict) -> str:
    return 'global' if c.contrastive.estimator == 'bank' else 'device'


def _labelled_pass(c: ConfigDict) -> bool:
    return c.teacher.batch_norm == 'own' or c.contrastive.prototype_source == 'teacher'


def _hard_threshold(c: ConfigDict) -> float:
    return 0.97 if c.indicator == 'confidence' else 0.8


def _similarity_temperature(c: ConfigDict) -> float:
    disputed = [c.contrastive.valid_indicator]
    disputed += [c.unsupervised.cross_indicator] if c.pseudo_label == 'cross' else []
    from_below = c.indicator == 'both' and c.follow != 'reference' and 'similarity' in disputed
    selects = from_below or c.indicator == 'similarity'
    return SELECTIVE_TEMPERATURE if selects else 0.5


# Key -> one value for all columns, or (default, reference, paper); a function is of the
# configuration above its row, as the rows are filled in from the top.
ROWS: dict[str, Any] = {
    'pseudo_label': 'logit',
    'indicator': 'confidence',
    'steps': (40_000, 80_000, 40_000),
    'eight_bit_indicators': (False, True, False),
    'optimizer.learning_rate': 0.0064,
    'optimizer.floor': (1e-4, 1e-4, 0.0),
    'augment.mixing': 'cutmix',
    'augment.partner': ('next', 'first_device', 'next'),
    'unsupervised.loss': ('weighted', 'weighted', 'thresholded'),
    'unsupervised.cross_indicator': ('confidence', 'similarity', 'confidence'),
    'contrastive.prototype_source': ('student', 'student', 'teacher'),
    'contrastive.valid_indicator': ('confidence', 'confidence', 'similarity'),
    'contrastive.schedule': ('rampdown', 'reference', 'constant'),
    'contrastive.unseen': ('masked', 'zero', 'masked'),
    'contrastive.scope': (_scope, 'device', _scope),
    'contrastive.hard_threshold': _hard_threshold,
    'contrastive.similarity_temperature': _similarity_temperature,
    'teacher.labelled_pass': _labelled_pass,
    'eval.protocol': 'whole',
}
STREAM_ROWS: dict[str, Any] = {
    'batch_size': (16, 32, 16),
    'crop': (512, 512),
    'resize': (0.5, 1.5),  # of a stream with labels; the others are the weak view, which has none
}
# What a dataset (of the evaluation) has otherwise.
DATASETS: dict[str, dict[str, Any]] = {
    'cityscapes': {
        'steps': 80_000,
        'optimizer.learning_rate': (0.0038, 0.0064, 0.0038),
        'eval.protocol': ('sliding', 'random_crop', 'sliding'),
        'batch_size': (8, 16, 8),
        'crop': ((768, 768), (769, 769), (768, 768)),
        'resize': ((0.5, 2.0), (1.0, 1.0), (0.5, 2.0)),
    }
}


def resolve(config: ConfigDict, defaults: dict[str, Any]) -> None:
    """Fills in the keys of the table that are None, in place.

    Args:
        config: unlocked; `config.follow` names the column.
        defaults: the method's `DEFAULTS`, which come before the table.
    """
    for key, name, row in _rows(config):
        path, _, leaf = key.rpartition('.')
        table = _at(config, path) if path else config
        if table[leaf] is None:
            value = defaults.get(key, _column(row, config.follow))
            if name == 'resize' and not table.labels:
                value = (1.0, 1.0)
            table[leaf] = value(config) if callable(value) else value


def departures(config: ConfigDict, defaults: dict[str, Any]) -> list[str]:
    """Lists 'key=value' of the rows in which a resolved configuration departs from its column."""
    column = ConfigDict(config.to_dict())
    for key, _, _ in _rows(column):
        path, _, leaf = key.rpartition('.')
        (_at(column, path) if path else column)[leaf] = None
    resolve(column, defaults)
    keys = [key for key, _, _ in _rows(column)]
    return [f'{key}={_at(config, key)}' for key in keys if _at(config, key) != _at(column, key)]


def _rows(config: ConfigDict) -> Iterator[tuple[str, str, Any]]:
    """Gives (key, name of the row, row) of all rows that the configuration has."""
    own = DATASETS.get(config.eval.dataset.partition('/')[0], {})
    for key, row in ROWS.items():
        yield key, key, own.get(key, row)
    for stream in config.data.streams:
        for name, row in STREAM_ROWS.items():
            yield f'data.streams.{stream}.{name}', name, own.get(name, row)


def _column(row: Any, follow: str) -> Any:
    return row[COLUMNS.index(follow)] if isinstance(row, tuple) and len(row) == 3 else row


def _at(config: ConfigDict, key: str) -> Any:
    for part in key.split('.'):
        config = config[part]
    return config
