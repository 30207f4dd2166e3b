"""Every requirement has its tested versions in constraints.txt and its licence in docs/."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT


def requirements(name):
    """The requirements that a file has itself."""
    lines = [line.partition('#')[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith('-')]


def optional():
    with (ROOT / 'pyproject.toml').open('rb') as file:
        extras = tomllib.load(file)['project']['optional-dependencies']
    return [Requirement(line) for lines in extras.values() for line in lines]


def normal(name):
    """A package's name as pip compares it."""
    return re.sub(r'[-_.]+', '-', name).lower()


@pytest.mark.parametrize('python', ['3.11', '3.12'])
def test_the_tested_versions_are_in_the_ranges_that_are_required(python):
    here = {'python_version': python}
    tested = {
        normal(one.name): one.specifier
        for one in requirements('constraints.txt')
        if not one.marker or one.marker.evaluate(here)
    }
    for one in requirements('requirements.txt') + requirements('requirements-dev.txt'):
        (exact,) = tested[normal(one.name)]
        assert exact.operator == '==' and one.specifier.contains(exact.version), one


def test_the_licence_of_every_requirement_is_listed():
    text = (ROOT / 'docs' / 'licences.md').read_text()
    listed = {normal(name) for name in re.findall(r'^\| ([\w-]+) \| [^|]+ \|$', text, re.MULTILINE)}
    needed = requirements('requirements.txt') + requirements('requirements-dev.txt') + optional()
    assert {normal(one.name) for one in needed} == listed - {'package'}
