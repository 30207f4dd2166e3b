"""How the step grows: the ratios, and settings that training itself would refuse."""

import jax
import pytest

from benchmarks import growth, step


def row(ms, gflop, mebibytes):
    return {'ms': ms, 'img/s': 1.0, 'GFLOP': gflop, 'temporary MiB': mebibytes, 'compile s': 1.0}


def test_ratios_are_by_the_first_row_and_by_what_should_have_grown():
    found = growth.ratios(row(10.0, 5.0, 100.0), row(60.0, 20.0, 200.0), 4.0)
    assert found['to linear'] == pytest.approx(1.5)  # six times as long for four times as much
    assert found['to FLOP'] == pytest.approx(1.5)
    assert found['memory to linear'] == pytest.approx(0.5)


def test_a_row_that_does_not_fit_says_so_and_the_next_number_is_measured(monkeypatch):
    def measure(size, setting):
        if setting.get('devices', 1) > 2:
            return None  # there are no more
        if setting['crop'] > 512:
            return {**dict.fromkeys(growth.COLUMNS, float('nan')), 'ms': step.OUT_OF_MEMORY}
        if setting['batch'] < 2:
            return {**dict.fromkeys(growth.COLUMNS, float('nan')), 'ms': growth.REFUSED}
        return row(float(setting['batch']), 1.0, 1.0)

    monkeypatch.setattr(growth, 'measure', measure)
    monkeypatch.setattr(growth, 'fake_devices', measure)
    found = list(growth.rows('real'))
    tables = {}
    for caption, one in found:
        assert list(one)[1:] == list(growth.COLUMNS)
        tables.setdefault(caption, []).append(one)
    by_number = {next(iter(rows[0])): rows for rows in tables.values()}
    assert [r['batch'] for r in by_number['batch']] == [1, 2, 4, 8, 16, 32]
    assert by_number['batch'][0]['ms'] == growth.REFUSED
    assert [r['to linear'] for r in by_number['batch'][1:]] == pytest.approx(5 * [1])
    assert [r['ms'] for r in by_number['crop']] == [4.0, 4.0, *2 * [step.OUT_OF_MEMORY]]
    assert by_number['crop'][1]['to linear'] == pytest.approx(1 / 4)  # of four times the pixels
    assert [r['devices'] for r in by_number['devices']] == [1, 2]
    assert [r['classes'] for r in by_number['classes']] == [2, 7, 21, 60, 150]


@pytest.mark.parametrize(('classes', 'batch'), [(2, 1), (150, 3)])
def test_the_step_of_a_setting_is_traced(classes, batch):
    config = growth.configuration('small', classes, batch, 64)
    run = growth.program('small', config)
    start, arrays = growth.shapes(run, config)
    assert arrays['labelled']['label'].shape == (batch, 64, 64)
    assert start.memory['prototypes'].shape == (classes, 32)
    assert all(a.max() < classes for a in [growth.pixels(config)['labelled']['label']])
    after, _ = jax.eval_shape(run.step, start, arrays)
    assert jax.tree.structure(after) == jax.tree.structure(start)


def test_fewer_devices_give_no_row():
    setting = {'classes': 2, 'batch': 1, 'crop': 64, 'devices': jax.device_count() + 1}
    assert growth.measure('small', setting) is None


@pytest.fixture
def narrow(monkeypatch):
    """A network of the same form that is traced sooner."""
    smaller = {'model.backbone': 'resnet18', 'model.width': 0.125}
    monkeypatch.setitem(growth.CHANGES, 'real', {**growth.CHANGES['real'], **smaller})


def test_the_network_refuses_a_batch_of_one_and_the_row_says_so(narrow):
    found = growth.measure('real', {'classes': 21, 'batch': 1, 'crop': 512})
    assert found['ms'] == 'refused: BatchNorm needs 2 values a channel'
    assert list(found) == ['ms', *(c for c in growth.COLUMNS if c != 'ms')]


def test_every_other_real_setting_is_traced(narrow):
    settings = {
        tuple(sorted({**growth.BESIDE['real'][number], number: value}.items()))
        for number, values in growth.VALUES['real'].items()
        for value in values
        if number != 'devices'  # the same step
    }
    assert len(settings) == 13
    for setting in settings:
        config = growth.configuration('real', **dict(setting))
        if config.data.streams.labelled.batch_size == 1:
            continue
        run = growth.program('real', config)
        _, metrics = jax.eval_shape(run.step, *growth.shapes(run, config))
        assert metrics['loss'].shape == (), setting
