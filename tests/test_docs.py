"""README.md and docs/: every link leads to a file, and to a heading in it, that is there."""

import re

import pytest

from tests.conftest import ROOT

FILES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def prose(file):
    return re.sub(r'```.*?```', '', file.read_text(), flags=re.DOTALL)


def anchor(heading):
    """A heading as GitHub has it in addresses."""
    words = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
    return re.sub(r'[^\w\- ]', '', words).replace(' ', '-')


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(file)):
        if link.startswith('http'):
            continue
        path, _, heading = link.partition('#')
        target = file.parent / path if path else file
        assert target.exists(), link
        if heading:
            headings = re.findall(r'^#+ (.*)$', prose(target), flags=re.MULTILINE)
            assert heading in map(anchor, headings), link


def test_the_readme_stays_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) < 220
