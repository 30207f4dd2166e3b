"""The record of a run, and how it is shown."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from css_jax.evaluation import tables
from css_jax.run import metrics, progress


def test_steps_after_the_restored_one_are_dropped(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    for step in range(1, 5):
        writer.write(step, {'loss': step / 2})
    writer.close()
    writer = metrics.Writer(tmp_path, 2)
    writer.write(3, {'loss': 9.0})
    writer.close()
    assert [(r['step'], r['loss']) for r in metrics.read(tmp_path)] == [(1, 0.5), (2, 1), (3, 9)]
    assert len(list(tmp_path.glob('events.*'))) == 1


def test_a_step_that_is_evaluated_again_is_shown_once(tmp_path):
    for start in (0, 2):
        writer = metrics.Writer(tmp_path, start)
        writer.write(2, {'eval_miou': 0.5})
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars('eval_miou')] == [(2, 0.5)]
    assert len(metrics.read(tmp_path)) == 1


def test_what_is_not_finite_is_written_as_json_null(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer.write(1, {'loss': float('nan')})
    writer.close()
    assert json.loads((tmp_path / metrics.METRICS).read_text())['loss'] is None


def test_durations():
    assert progress.duration(59.6) == '01:00'
    assert progress.duration(3 * 3600 + 62) == '3:01:02'
    assert progress.duration(-1) == '00:00'


def test_the_table_shows_a_class_without_pixels_as_a_dash():
    scores = {'iou': [0.5, None], 'miou': 0.5, 'accuracy': 0.75}
    table = tables.scores_table(('sky', 'road'), {'IoU %': scores})
    assert table.splitlines()[2:] == [
        '| sky            | 50.00 |',
        '| road           |     - |',
        '| mIoU           | 50.00 |',
        '| pixel accuracy | 75.00 |',
    ]
