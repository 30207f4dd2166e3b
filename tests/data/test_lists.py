"""The field's split lists: how a line names an image, what is checked, and the command."""

import functools
import hashlib
import http.server
import json
import re
import shutil
import threading

import pytest

from data_prep.splits import __main__ as command
from data_prep.splits import lists
from tests.conftest import ROOT

SHARED = ROOT.parent / 'shared' / 'splits'
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f'{SHARED} is not there: the published lists, see data_prep.splits'
)


# UniMatch's: how many images -> folder; and a line of each dataset's.
SHARES = {
    'pascal': {662: '1_16', 1323: '1_8', 2646: '1_4'},
    'cityscapes': {186: '1_16', 372: '1_8', 744: '1_4', 1488: '1_2'},
    'ade20k': {316: '1_64', 631: '1_32', 1263: '1_16', 2526: '1_8', 5052: '1_4'},
    'coco': {232: '1_512', 463: '1_256', 925: '1_128', 1849: '1_64', 3697: '1_32'},
}
_CITY = 'leftImg8bit/train/ulm/ulm_{1:06d}_000019_leftImg8bit.png'
LINES = {
    'pascal': 'JPEGImages/20{0:02d}_{1:06d}.jpg SegmentationClass/20{0:02d}_{1:06d}.png',
    'cityscapes': f'{_CITY} gtFine/train/ulm/ulm_{{1:06d}}_000019_gtFine_labelTrainIds.png',
    'ade20k': 'images/training/ADE_train_{1:08d}.jpg annotations/training/ADE_train_{1:08d}.png',
    'coco': 'train2017/{1:012d}.jpg masks/{1:012d}.png',
}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('2007_000032', '2007_000032'),
        ('  2007_000032 \t', '2007_000032'),
        ('JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png', '2007_000032'),
        ('/JPEGImages/2007_000032.jpg\t/SegmentationClassAug/2007_000032.png', '2007_000032'),
        ('leftImg8bit/train/ulm/ulm_000061_000019_leftImg8bit.png', 'ulm_000061_000019'),
        (
            'leftImg8bit/train/ulm/ulm_000061_000019_leftImg8bit.png '
            'gtFine/train/ulm/ulm_000061_000019_gtFine_labelIds.png',
            'ulm_000061_000019',
        ),
        ('Seq05VD_f00000.png', 'Seq05VD_f00000'),
    ],
)
def test_a_line_names_an_image(line, name):
    assert lists.image_id(line) == name


@needs_shared
def test_published_lists_take_the_finely_annotated_images_first():
    """Also those of the blender protocol: a random draw from the 10,582 is a harder task."""
    fine = set(lists.read(SHARED / 'pascal/1464/labeled.txt'))
    for count in lists.COUNTS['pascal']:
        named = set(lists.read(SHARED / f'pascal/{count}/labeled.txt'))
        assert len(named & fine) == min(count, 1464)


@pytest.fixture(scope='session')
def published(tmp_path_factory):
    """A folder with made-up lists of the published names, sizes and forms."""
    folder = tmp_path_factory.mktemp('published')
    for name, form in {
        'pascal': '20{:02d}_{:06d}',
        'cityscapes': 'leftImg8bit/train/ulm/ulm_{:06d}_{:06d}_leftImg8bit.png',
    }.items():
        train = [form.format(i % 5 + 7, i) for i in range(lists.TRAIN[name])]
        for count in lists.COUNTS[name]:
            write(folder / name / f'{count}/labeled.txt', '\n'.join(train[:count]))
            write(folder / name / f'{count}/unlabeled.txt', '\r\n'.join(train[count:]) + '\r\n')
        val = [form.format(20, i) for i in range(lists.VAL[name])]
        write(folder / name / 'val.txt', '\n'.join(val) + '\n')
    for name, shares in SHARES.items():
        for count, share in shares.items():
            step = lists.TRAIN[name] // count
            lines = [LINES[name].format(i % 5 + 7, i) for i in range(3, lists.TRAIN[name], step)]
            # The files of COCO have no end of the last line.
            end = '' if name == 'coco' else '\n'
            write(folder / name / share / 'labeled.txt', '\n'.join(lines[:count]) + end)
    return folder


@pytest.fixture
def server(published, monkeypatch):
    """Serves the lists where `lists.URL` says; gives the requested paths, and what to spoil."""
    asked, spoiled = [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.strip('/'))
            name = re.search(r'(pascal|cityscapes|ade20k|coco)/.*', self.path)[0]
            content = (published / name).read_bytes()
            self.send_response(spoiled.get(name, 200))
            self.send_header('Content-Length', str(len(content) + spoiled.get('missing', 0)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.02))
    thread.start()
    address = f'http://127.0.0.1:{running.server_port}/{{place}}/{{name}}'
    monkeypatch.setattr(lists, 'URL', address)
    yield asked, spoiled
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize(('layout', 'number'), [('u2pl', 28), ('unimatch', 17)])
def test_every_list_has_one_pinned_commit(layout, number):
    named = [name for names in lists.PLACES[layout].values() for name in names]
    assert sorted(named) == sorted(lists.sizes(layout)) and len(named) == number
    for place in lists.PLACES[layout]:
        owner, repository, commit, *_ = place.split('/')
        assert f'https://github.com/{owner}/{repository}' in lists.PAGES[layout]
        assert len(commit) == 40 and int(commit, 16)


def test_the_folders_of_a_layout_are_those_of_its_repository():
    assert lists.folders('pascal', 'u2pl')[662] == '662'
    assert list(lists.folders('pascal', 'u2pl')) == list(lists.COUNTS['pascal'])
    classic = {count: str(count) for count in (92, 183, 366, 732, 1464)}
    assert lists.folders('pascal', 'unimatch') == classic | SHARES['pascal']
    for name in ('cityscapes', 'ade20k', 'coco'):
        assert lists.folders(name, 'unimatch') == SHARES[name]
    assert lists.folders('ade20k', 'u2pl') == lists.folders('coco', 'u2pl') == {}
    assert lists.sizes('unimatch') == {
        f'{name}/{share}/labeled.txt': count
        for name, shares in SHARES.items()
        for count, share in shares.items()
    }


def test_command_puts_the_lists_of_both_layouts_into_one_folder(server, published, tmp_path):
    target = tmp_path / 'splits'
    command.main(['--target', str(target)])
    first = json.loads((target / 'record.json').read_text())
    server[0].clear()
    command.main(['--target', str(target), '--layout', 'unimatch'])
    places = lists.PLACES['unimatch'].items()
    assert sorted(server[0]) == sorted(f'{at}/{name}' for at, names in places for name in names)
    record = json.loads((target / 'record.json').read_text())
    assert len(first) == 28 and len(record) == 45 and first.items() <= record.items()
    assert record['pascal/1_8/labeled.txt']['images'] == 1323
    assert record['ade20k/1_64/labeled.txt']['images'] == 316
    assert 'ADE_train_00000003' in lists.read(target / 'ade20k/1_64/labeled.txt')
    assert '000000000003' in lists.read(target / 'coco/1_512/labeled.txt')
    for count, share in lists.folders('pascal', 'unimatch').items():
        assert len(lists.read(target / 'pascal' / share / 'labeled.txt')) == count
    assert '2010_000003' in lists.read(target / 'pascal/1_16/labeled.txt')

    path = write(tmp_path / 'less' / 'pascal/1_16/labeled.txt', '2010_000003\n')
    for share in ('1_8', '1_4'):
        other = (published / 'pascal' / share / 'labeled.txt').read_text()
        write(tmp_path / 'less' / 'pascal' / share / 'labeled.txt', other)
    with pytest.raises(ValueError, match=r'1_16/labeled.txt: got 1 images, expected 662'):
        command.put(target, tmp_path / 'less', 'unimatch')
    assert lists.read(path).keys() == {'2010_000003'}


def test_a_copy_of_a_repository_without_a_dataset_gives_the_others(published, tmp_path, capsys):
    """UniMatch's has no list of ADE20K."""
    for name in ('pascal', 'cityscapes', 'coco'):
        shutil.copytree(published / name, tmp_path / 'copy' / name)
    command.put(tmp_path / 'splits', tmp_path / 'copy', 'unimatch')
    assert f'no lists of ade20k in {tmp_path}/copy' in capsys.readouterr().out
    written = {path.parts[-3] for path in (tmp_path / 'splits').rglob('labeled.txt')}
    assert written == {'pascal', 'cityscapes', 'coco'}
    assert len(json.loads((tmp_path / 'splits' / 'record.json').read_text())) == 12
    # One list of a dataset brings all of them.
    write(tmp_path / 'copy' / 'ade20k/1_8/labeled.txt', 'ADE_train_00000003\n')
    with pytest.raises(FileNotFoundError, match=r'no \S+ade20k/1_64/labeled.txt; .* all 17 lists'):
        command.put(tmp_path / 'splits', tmp_path / 'copy', 'unimatch')
    shutil.rmtree(tmp_path / 'copy' / 'cityscapes')
    shutil.rmtree(tmp_path / 'copy' / 'ade20k')
    command.put(tmp_path / 'other', tmp_path / 'copy')  # U2PL's, of VOC alone
    assert {path.parts[-3] for path in (tmp_path / 'other').rglob('labeled.txt')} == {'pascal'}


@pytest.mark.parametrize(
    ('name', 'line', 'words'),
    [
        ('ade20k/1_16', 'images/validation/ADE_val_00000001.jpg x.png', r"got 'ADE_val_00000001'"),
        ('coco/1_512', 'COCO_train2014_000000000009.jpg', r"got 'COCO_train2014_0*9'"),
        ('cityscapes/1_8', 'ulm_000001', r"got 'ulm_000001', expected an id of the form"),
    ],
)
def test_a_list_of_unimatch_of_other_images_is_refused(name, line, words, published):
    found = {each: set(lists.read(published / each)) for each in lists.sizes('unimatch')}
    lists.check(found, 'unimatch')
    swap(found[f'{name}/labeled.txt'], lists.image_id(line))
    with pytest.raises(ValueError, match=f'{name}/labeled.txt: {words}'):
        lists.check(found, 'unimatch')


def test_command_downloads_the_lists_and_records_them(server, published, tmp_path, capsys):
    target = tmp_path / 'splits'
    command.main(['--target', str(target)])
    asked, _ = server
    places = {name: place for place, names in lists.PLACES['u2pl'].items() for name in names}
    assert sorted(asked) == sorted(f'{place}/{name}' for name, place in places.items())
    content = (target / 'pascal/92/labeled.txt').read_bytes()
    assert content == (published / 'pascal/92/labeled.txt').read_bytes()
    record = json.loads((target / 'record.json').read_text())
    assert len(record) == 28
    noted = record['pascal/92/labeled.txt']
    assert noted['images'] == 92 and noted['sha256'] == hashlib.sha256(content).hexdigest()
    assert noted['from'].endswith(f'/{places["pascal/92/labeled.txt"]}/pascal/92/labeled.txt')
    assert noted['sha256'] in capsys.readouterr().out
    assert not list(target.rglob('*.part'))


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        ({'pascal/366/labeled.txt': 404}, r'366/labeled\.txt: HTTP Error 404.*--from'),
        ({'missing': 5}, r'pascal/92/labeled\.txt: IncompleteRead'),
    ],
)
def test_command_names_the_list_it_cannot_download(server, tmp_path, capsys, spoil, message):
    server[1].update(spoil)
    with pytest.raises(SystemExit) as stopped:
        command.main(['--target', str(tmp_path / 'splits')])
    assert re.match(f'error: .*{message}', stopped.value.code)
    assert not (tmp_path / 'splits').exists()


def test_command_keeps_the_same_lists_and_refuses_other_ones(published, tmp_path):
    target = tmp_path / 'splits'
    command.put(target, published)
    command.put(target, published)
    path = target / 'cityscapes/744/labeled.txt'
    path.write_text('mine\n')
    (target / 'pascal/92/labeled.txt').unlink()
    with pytest.raises(ValueError, match=r'744/labeled\.txt: got another list .* sha256 [0-9a-f]+'):
        command.put(target, published)
    assert path.read_text() == 'mine\n'
    assert not (target / 'pascal/92/labeled.txt').exists()


def test_command_names_a_list_that_the_folder_does_not_have(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        command.main(['--target', str(tmp_path / 'splits'), '--from', str(tmp_path)])
    assert stopped.value.code.startswith(f'error: --from {tmp_path}: there is no {tmp_path}/')
    assert 'pascal/92/labeled.txt, ..., cityscapes/val.txt' in stopped.value.code


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('pascal/92/labeled.txt', lambda ids: ids.pop(), 'got 91 images, expected 92'),
        ('pascal/val.txt', lambda ids: ids.add('2011_999999'), 'got 1450 images, expected 1449'),
        ('pascal/92/labeled.txt', lambda ids: swap(ids, '92'), r"got '92', expected an id of the"),
        (
            'cityscapes/372/unlabeled.txt',
            lambda ids: swap(ids, 'ulm_000007_000000'),
            r"got 'ulm_000007_000000', expected no image of labeled.txt",
        ),
        (
            'pascal/1323/unlabeled.txt',
            lambda ids: swap(ids, '2011_999999'),
            r"got '\w+' and 1 more, expected with labeled.txt the images of pascal/92",
        ),
        (
            'pascal/val.txt',
            lambda ids: swap(ids, '2007_000000'),
            "got '2007_000000', expected no training image",
        ),
    ],
)
def test_lists_that_are_not_what_their_name_says(published, name, change, message):
    found = {name: set(lists.read(published / name)) for name in lists.sizes()}
    lists.check(found)
    change(found[name])
    with pytest.raises(ValueError, match=f'{name}: {message}'):
        lists.check(found)


def swap(ids, other):
    ids.remove(max(ids))
    ids.add(other)


@needs_shared
def test_command_takes_the_lists_of_a_folder(tmp_path):
    command.main(['--from', str(SHARED), '--target', str(tmp_path)])
    for path in SHARED.rglob('*.txt'):
        assert (tmp_path / path.relative_to(SHARED)).read_bytes() == path.read_bytes()


KNOWN = (
    'photo',
    'photo (1)',
    'site A 00',
    'siteA/001',
    '001',
    '10',
    '3',
    'крыша 1',
    '屋根',
    'a.jpg',
)


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('photo (1).jpg', 'photo (1)'),
        ('images/photo (1).jpg', 'photo (1)'),
        ('my images/photo (1).jpg', 'photo (1)'),
        ('photo.jpg', 'photo'),
        ('photo', 'photo'),
        ('site A 00', 'site A 00'),
        (' "site A 00.png" ', 'site A 00'),
        ("'images/site A 00.PNG'", 'site A 00'),
        ('site A 00.png masks/site A 00.png', 'site A 00'),
        ('"site A 00.png" "masks/3.png"', 'site A 00'),
        ('siteA/001.tif', 'siteA/001'),
        ('images/siteA/001.TIFF masks/siteA/001.png', 'siteA/001'),
        ('siteB/001.webp', '001'),
        ('10.jpeg masks/3.png', '10'),
        ('10 masks/3.png', '10'),
        ('dir A/10.bmp masks/3.png', '10'),
        ('крыша 1.png', 'крыша 1'),
        ('images/屋根.JPG\tmasks/屋根.png', '屋根'),
        ('a.jpg.png', 'a.jpg'),
        ('a.jpg', 'a.jpg'),
    ],
)
def test_a_known_name_may_have_spaces_quotes_and_a_folder(line, name):
    assert lists.image_id(line, KNOWN) == name


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('images/other.png masks/3.png', 'other'),
        ('site B 00.png', 'site B 00'),
        ('"site B 00.png"', 'site B 00'),
        ('train/other', 'other'),
    ],
)
def test_an_unknown_name_is_given_back_for_the_message(line, name):
    assert lists.image_id(line, KNOWN) == name


@pytest.mark.parametrize('ending', ['jpg', 'JPG', 'jpeg', 'Png', 'bmp', 'tif', 'TIFF', 'webp'])
def test_endings_of_images_are_known_in_any_case(ending):
    assert lists.image_id(f'images/a.b.{ending} x') == 'a.b'


def test_a_list_is_read_by_the_known_names(tmp_path):
    path = write(tmp_path / 'ids.txt', '"photo (1).jpg"\r\n\r\nphoto.jpg\r\n')
    assert lists.read(path, known=KNOWN) == {'photo (1)': 1, 'photo': 3}
    write(tmp_path / 'ids.txt', 'photo (1).jpg\nimages/photo (1).jpg\n')
    with pytest.raises(ValueError, match=r"got 'photo \(1\)' in line 1 and again in line 2"):
        lists.read(path, known=KNOWN)
