"""Tables of runs over seeds: pairs, spreads, and what a run's folder has to be called."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import curves, evidence


def record(row, seed, miou, student=None):
    return {
        'row': row,
        'seed': seed,
        'miou': miou,
        'student': student,
        'minutes': 7.0,
        'step_seconds': 1.5,
    }


def test_difference_is_of_pairs():
    one, other = {0: 3.0, 1: 5.0, 2: 10.0, 9: 99.0}, {2: 8.0, 1: 4.0, 0: 0.0}
    mean, error, count = evidence.difference(one, other)
    pairs = np.array([3.0, 1.0, 2.0])
    assert (mean, count) == (2.0, 3)
    np.testing.assert_allclose(error, 2 * pairs.std(ddof=1) / np.sqrt(3))


def test_one_pair_has_no_error():
    assert evidence.difference({0: 3.0}, {0: 1.0}) == (2.0, None, 1)
    with pytest.raises(ValueError, match='none in common'):
        evidence.difference({0: 3.0}, {1: 1.0})


def test_table():
    records = [record('plain', seed, 50.0 + seed, 49.0) for seed in range(3)]
    records += [record('other', seed, 52.0 + 2 * seed) for seed in range(3)]
    lines = evidence.table(records, 'plain').splitlines()
    assert [cell.strip() for cell in lines[2].split('|')[1:5]] == [
        'plain', '0 1 2', '51.0 ± 1.0', '49.0 ± 0.0'
    ]  # fmt: skip
    assert lines[3].rstrip(' |').endswith('+3.0 ± 1.2 (3 pairs)')
    with pytest.raises(ValueError, match='expected one of plain, other'):
        evidence.table(records, 'nothing')


def test_rows_are_named_by_folders():
    assert evidence.row_of('animals-55-cutmix-s12-lr0.01', 12) == 'animals-55-cutmix-lr0.01'
    assert evidence.row_of('tau-s0', 0) == 'tau'
    for name, seed in (('cutmix', 0), ('cutmix-s1', 0), ('cutmix-s1x', 1)):
        with pytest.raises(ValueError, match=f'expected -s{seed}'):
            evidence.row_of(name, seed)


def test_read(tmp_path):
    path = tmp_path / 'runs.jsonl'
    path.write_text(json.dumps(record('a', 0, 1.0)) + '\n')
    assert evidence.read(path) == [record('a', 0, 1.0)]


def logged(row, seed, points):
    return {'row': row, 'seed': seed, 'log': {'loss': points}}


def test_curves():
    records = [
        logged('a & b', 0, [[50, 1.0], [100, 3.0]]),
        logged('a & b', 1, [[50, 2.0], [100, None]]),
        logged('other', 0, [[100, 2.0]]),
    ]
    drawn = ElementTree.fromstring(curves.svg(records, ['loss']))
    words = [element.text for element in drawn.iter() if element.tag.endswith('text')]
    assert {'a & b', 'other', 'step', '100'} <= set(words)
    dots = [element for element in drawn.iter() if element.tag.endswith('circle')]
    assert len(dots) == 3  # one step: a seed of 'a & b', its mean, and 'other'
    with pytest.raises(ValueError, match="'confident'"):
        curves.svg(records, ['confident'])


def test_curves_are_means_of_the_steps_that_all_seeds_have():
    assert curves.mean([[(50, 1.0), (100, 3.0)], [(50, 2.0)]]) == [(50, 1.5)]
