"""Configurations drawn at random: each can be trained, or is refused in one line."""

import itertools

import pytest

from tests import fuzz

TRACED = 5  # configurations of `fuzz.small`, a second each


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return fuzz.prepared(tmp_path_factory.mktemp('prepared'))


@pytest.fixture
def outcomes(data, tmp_path, monkeypatch):
    """Gives seeds -> what comes of their cases, where none is a fault; else says how to see it."""
    monkeypatch.chdir(tmp_path)  # where a relative path of a case leads nowhere

    def run(seeds, trace=False):
        draw = fuzz.small if trace else fuzz.case
        with fuzz.opened_once():
            found = {seed: fuzz.outcome(draw(seed), tmp_path, data, trace) for seed in seeds}
        flag = ' --trace' if trace else ''
        faults = [
            f'python -m tests.fuzz {seed}{flag}\n    {draw(seed)}\n    {said}'
            for seed, said in found.items()
            if said.startswith('!')
        ]
        assert not faults, '\n'.join([f'{len(faults)} faults:', *faults])
        return found

    return run


def test_drawn_configurations_are_accepted_or_refused_in_one_line(outcomes):
    found = outcomes(range(200))
    assert 40 < sum(not said for said in found.values()) < 160  # both are drawn


def test_what_is_accepted_can_be_traced(outcomes):
    seeds, accepted = itertools.count(), 0
    while accepted < TRACED:
        accepted += outcomes([next(seeds)], trace=True).popitem()[1] == ''


@pytest.mark.soak
def test_thousands_are_accepted_or_refused_in_one_line(outcomes):
    outcomes(range(200, 5200))


@pytest.mark.soak
def test_hundreds_that_are_accepted_can_be_traced(outcomes):
    found = outcomes(range(1000, 1200), trace=True)
    assert sum(not said for said in found.values()) > 100
