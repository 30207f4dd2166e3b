import functools
import http.server
import re
import struct
import tarfile
import threading

import pytest

from data_prep import archives
from tests import fakes

MEMBERS = {'set/a.txt': b'alpha', 'set/deep/b.bin': bytes(range(256)) * 200, 'set/empty': b''}
WRITERS = {'x.tar': fakes.tar, 'x.tgz': fakes.tgz, 'x.zip': fakes.zipped}


def read_all(file):
    """Reads every member, with the function that serves this kind of archive."""
    if file.suffix == '.tgz':
        return dict(archives.walk(file, lambda name: True))
    return {name: read() for name, read in archives.members(file).items()}


def write(folder, name, members, **links):
    file = folder / name
    file.write_bytes(WRITERS[name](members, **links))
    return file


@pytest.mark.parametrize('name', WRITERS)
def test_members_are_read(name, tmp_path):
    file = write(tmp_path, name, {f'./{key}': value for key, value in MEMBERS.items()})
    assert read_all(file) == MEMBERS


def test_members_can_be_read_in_any_order_and_again(tmp_path):
    for name in ('x.tar', 'x.zip'):
        found = archives.members(write(tmp_path, name, MEMBERS))
        for key in (*reversed(MEMBERS), *MEMBERS):
            assert found[key]() == MEMBERS[key]


def test_walk_reads_what_is_wanted_also_where_the_tar_came_unpacked(tmp_path):
    for data in (fakes.tgz(MEMBERS), fakes.tar(MEMBERS)):
        (tmp_path / 'x.tgz').write_bytes(data)
        found = archives.walk(tmp_path / 'x.tgz', lambda name: name.endswith('.txt'))
        assert list(found) == [('set/a.txt', b'alpha')]


TREE = re.compile(r'[a-z]+/((?:deep/)?[a-z]+\.(?:txt|bin))')


def laid(folder, name, members):
    """Members as an archive of this name, or in a folder."""
    if name in WRITERS:
        return write(folder, name, members)
    for member, data in members.items():
        (folder / name / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / member).write_bytes(data)
    return folder / name


@pytest.mark.parametrize('name', [*WRITERS, 'unpacked'])
def test_trees_are_the_same_in_folders_and_archives(name, tmp_path):
    place, spool = laid(tmp_path, name, MEMBERS), tmp_path / 'spool'
    spool.mkdir()
    found = archives.tree(place, TREE, spool)
    assert list(found) == ['a.txt', 'deep/b.bin']
    for key in ('deep/b.bin', 'a.txt', 'deep/b.bin'):  # in any order, and again
        assert found[key].read() == MEMBERS[f'set/{key}']
        assert found[key].shown.startswith(str(place))
        assert found[key].shown.endswith(f'set/{key}')
    assert not list(spool.iterdir())  # what was copied has no name


@pytest.mark.parametrize('name', [*WRITERS, 'unpacked'])
def test_two_files_of_one_path_in_a_tree_are_named(name, tmp_path):
    place = laid(tmp_path, name, {**MEMBERS, 'other/a.txt': b'another'})
    with pytest.raises(ValueError, match=r'(set|other)/a\.txt and .*/a\.txt are both a\.txt'):
        archives.tree(place, TREE, tmp_path)


@pytest.mark.parametrize('name', WRITERS)
def test_trees_of_archives_are_as_safe_as_these(name, tmp_path):
    for changes, words in (
        ({'members': {**MEMBERS, '../out.txt': b''}}, r"'\.\./out\.txt' lies outside"),
        ({'members': MEMBERS, 'links': {'set/link': '/etc/passwd'}}, "'set/link' is a link"),
    ):
        with pytest.raises(ValueError, match=words):
            archives.tree(write(tmp_path, name, **changes), TREE, tmp_path)
    file = write(tmp_path, name, MEMBERS)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=f'{name} is damaged or cut short'):
        archives.tree(file, TREE, tmp_path)


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('bad', ['../out.txt', 'set/../../out.txt', '/out.txt'])
def test_members_outside_their_folder_are_refused(name, bad, tmp_path):
    file = write(tmp_path, name, {**MEMBERS, bad: b'boo'})
    with pytest.raises(ValueError, match=f"{name}: refused: its member '{bad}' lies outside"):
        read_all(file)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize('name', WRITERS)
def test_links_are_refused(name, tmp_path):
    file = write(tmp_path, name, MEMBERS, links={'set/link': '/etc/passwd'})
    with pytest.raises(ValueError, match=f"{name}: refused: its member 'set/link' is a link"):
        read_all(file)


@pytest.mark.parametrize('name', WRITERS)
def test_two_members_of_one_name_are_refused(name, tmp_path):
    file = write(tmp_path, name, {**MEMBERS, './set/a.txt': b'another'})
    with pytest.raises(ValueError, match=f"{name}: refused: its member 'set/a.txt' is there twice"):
        read_all(file)


def test_what_nobody_wants_may_be_there_twice(tmp_path):
    file = write(tmp_path, 'x.tgz', {**MEMBERS, './set/a.txt': b'another'})
    assert list(archives.walk(file, lambda name: name == 'set/empty')) == [('set/empty', b'')]


@pytest.mark.parametrize(
    ('offset', 'value', 'why'),
    [(8, 1, 'is encrypted'), (10, 97, 'compression method is not supported')],
)
def test_members_zipfile_cannot_read_are_named(offset, value, why, tmp_path):
    file = write(tmp_path, 'x.zip', MEMBERS)
    data = bytearray(file.read_bytes())
    # Fields of a member's header, in the directory and, two bytes earlier, beside its data.
    for place in (data.index(b'PK\1\2') + offset, data.index(b'PK\3\4') + offset - 2):
        data[place] = value
    file.write_bytes(data)
    found = archives.members(file)
    with pytest.raises(ValueError, match=rf"x\.zip: its member 'set/a\.txt' cannot .*{why}"):
        found['set/a.txt']()
    assert found['set/deep/b.bin']() == MEMBERS['set/deep/b.bin']


@pytest.mark.parametrize('name', ['x.tgz', 'x.zip'])
def test_bombs_are_refused(name, tmp_path):
    file = write(tmp_path, name, {**MEMBERS, 'set/zeros': bytes(3 << 20)})
    with pytest.raises(ValueError, match="refused: its member 'set/zeros' has 3,145,728 bytes, p"):
        read_all(file)


def test_a_member_is_never_more_than_its_header_says(tmp_path):
    file = write(tmp_path, 'x.zip', MEMBERS)
    data = bytearray(file.read_bytes())
    for place in (data.index(b'PK\1\2') + 24, data.index(b'PK\3\4') + 22):  # its size
        data[place : place + 4] = struct.pack('<I', 2)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r'x\.zip is damaged'):
        archives.members(file)['set/a.txt']()


@pytest.mark.parametrize('name', ['x.tar', 'x.tgz'])
def test_a_member_with_holes_is_refused(name, tmp_path):
    holes = tarfile.TarInfo('set/holes')
    holes.pax_headers = {'GNU.sparse.map': '0,0', 'GNU.sparse.size': '5000'}
    with tarfile.open(tmp_path / name, 'w:gz' if name == 'x.tgz' else 'w') as archive:
        archive.addfile(holes)
    with pytest.raises(ValueError, match="refused: its member 'set/holes' is stored with holes"):
        read_all(tmp_path / name)


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.6])
def test_archives_cut_short_are_named(name, share, tmp_path):
    file = write(tmp_path, name, MEMBERS)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf'{name} is damaged or cut short'):
        read_all(file)


def test_a_member_cut_short_after_the_archive_was_opened_is_named(tmp_path):
    file = write(tmp_path, 'x.tar', MEMBERS)
    found = archives.members(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r'x\.tar is damaged .*set/deep/b\.bin is cut short'):
        found['set/deep/b.bin']()


def test_damaged_bytes_of_a_zip_are_noticed(tmp_path):
    file = write(tmp_path, 'x.zip', MEMBERS)
    data = bytearray(file.read_bytes())
    data[data.index(b'set/a.txt') + len('set/a.txt') + 1] ^= 0xFF
    file.write_bytes(data)
    found = archives.members(file)
    with pytest.raises(ValueError, match=r'x\.zip is damaged'):
        found['set/a.txt']()


def test_missing_members_are_named(tmp_path):
    file = write(tmp_path, 'x.tar', MEMBERS)
    found = archives.members(file)
    archives.require(file, found, MEMBERS)
    with pytest.raises(ValueError, match=r'x\.tar: there is no set/c in it'):
        archives.require(file, found, ['set/a.txt', 'set/c', 'set/d'])


def test_fingerprint(tmp_path):
    (tmp_path / 'abc').write_bytes(b'abc')
    digest = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'  # FIPS 180-2, B.1
    assert archives.fingerprint(tmp_path / 'abc') == {'bytes': 3, 'sha256': digest}
    assert archives.fingerprint(tmp_path / 'abc', digest)['published'] is True
    assert archives.fingerprint(tmp_path / 'abc', '0' * 64)['published'] is False
    older = 'a9993e364706816aba3e25717850c26c9cd0d89d'  # SHA-1, FIPS 180-2, A.1
    assert archives.checksum(tmp_path / 'abc', 'sha1') == older
    noted = archives.fingerprint(tmp_path / 'abc', older)
    assert noted == {'bytes': 3, 'sha256': digest, 'published': True}
    assert archives.fingerprint(tmp_path / 'abc', '0' * 40)['published'] is False


CONTENT = bytes(range(251)) * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /file; /plain ignores ranges; /broken ends after a third of the rest."""

    def __init__(self, asked, *args):
        self.asked = asked
        super().__init__(*args)

    def do_GET(self):
        wanted = self.headers['Range']
        self.asked.append((self.path, wanted))
        start = int(wanted[len('bytes=') : -1]) if wanted and self.path != '/plain' else 0
        if self.path not in ('/file', '/plain', '/broken'):
            return self.send_error(404)
        if start >= len(CONTENT):
            return self.send_error(416)
        rest = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 3] if self.path == '/broken' else rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """Address of a local server, and the list of (path, Range) it was asked for."""
    asked = []
    with http.server.HTTPServer(('127.0.0.1', 0), functools.partial(Handler, asked)) as local:
        threading.Thread(target=local.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{local.server_port}', asked
        local.shutdown()


@pytest.fixture
def digest(tmp_path):
    file = tmp_path / 'original'
    file.write_bytes(CONTENT)
    return archives.checksum(file)


def test_download(server, digest, tmp_path):
    address, _ = server
    for name, expected in (('known', digest), ('unknown', '')):
        archives.download(f'{address}/file', tmp_path / name, expected)
        assert (tmp_path / name).read_bytes() == CONTENT
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize('path', ['file', 'plain'])
def test_download_goes_on_where_it_was_cut_short(path, server, digest, tmp_path):
    address, asked = server
    file = tmp_path / 'x.tar'
    with pytest.raises(OSError, match=r'ended after 418,333 of 1,255,000 bytes.*run again'):
        archives.download(f'{address}/broken', file, digest)
    assert not file.exists()
    archives.download(f'{address}/{path}', file, digest)
    assert asked[-1] == (f'/{path}', 'bytes=418333-')
    assert file.read_bytes() == CONTENT


def test_download_that_is_interrupted_says_what_is_kept(server, digest, tmp_path, monkeypatch):
    address, _ = server

    class Interrupted(archives.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(archives, 'tqdm', Interrupted)
        with pytest.raises(KeyboardInterrupt, match=r'/file; .* kept in .*x\.tar\.part, run again'):
            archives.download(f'{address}/file', tmp_path / 'x.tar', digest)
    archives.download(f'{address}/file', tmp_path / 'x.tar', digest)
    assert (tmp_path / 'x.tar').read_bytes() == CONTENT


def test_download_that_has_everything_but_its_name_starts_anew(server, digest, tmp_path):
    address, asked = server
    (tmp_path / 'x.part').write_bytes(CONTENT)
    archives.download(f'{address}/file', tmp_path / 'x', digest)
    assert [wanted for _, wanted in asked] == ['bytes=1255000-', None]
    assert (tmp_path / 'x').read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_removed(server, tmp_path):
    with pytest.raises(ValueError, match=f'expected SHA-256 {"0" * 64}, came [0-9a-f]{{64}}'):
        archives.download(f'{server[0]}/file', tmp_path / 'x', '0' * 64)
    with pytest.raises(
        ValueError, match=f'expected SHA-1 {"0" * 40}, came [0-9a-f]{{40}}; removed'
    ):
        archives.download(f'{server[0]}/file', tmp_path / 'x', '0' * 40)
    assert not list(tmp_path.iterdir())


def test_an_address_that_does_not_answer_is_named(server, tmp_path):
    with pytest.raises(OSError, match=r'http://127\.0\.0\.1:\d+/gone: HTTP Error 404'):
        archives.download(f'{server[0]}/gone', tmp_path / 'x')
    assert not list(tmp_path.iterdir())
