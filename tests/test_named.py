"""Weights by name: downloaded once, whole or not at all, by the start of a fresh run alone."""

import concurrent.futures
import hashlib
import http.server
import io
import logging
import pathlib
import threading

import numpy as np
import pytest

from configs import camvid, cityscapes, voc
from css_jax import config as configs
from css_jax import methods, state
from css_jax.config import warnings
from css_jax.models import published
from css_jax.modes import preview
from css_jax.run import folder as run_folder
from css_jax.weights import initial, layouts, named
from tests import tiny
from tests.test_state_dicts import Storage, save, tensor

KEY = 'model.pretrained'
WHOLE = bytes(range(256)) * 20_000  # several pieces
DIGITS = hashlib.sha256(WHOLE).hexdigest()[:8]


class Server:
    """Serves `answers`, path -> (status, Content-Length or None, body), and notes who asks."""

    def __init__(self):
        self.answers, self.asked = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                status, length, body = outer.answers.get(self.path, (404, 0, b''))
                self.send_response(status)
                if length is not None:
                    self.send_header('Content-Length', str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('localhost', 0), Handler)
        self.address = f'http://localhost:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in place of the public ones, an empty cache, and nothing offline."""
    server = Server()
    monkeypatch.setenv(named.CACHE, str(tmp_path / 'cache'))
    monkeypatch.delenv(named.OFFLINE, raising=False)
    monkeypatch.setenv('no_proxy', 'localhost')
    for name, old in published.NAMES.items():
        if isinstance(old, published.Download):
            url = f'{server.address}/{old.backbone}-{DIGITS}.pth'
            monkeypatch.setitem(published.NAMES, name, old._replace(url=url, sha256=DIGITS))
    yield server
    server.server.shutdown()
    server.server.server_close()


def good(body=WHOLE):
    return 200, len(body), body


PATH = f'/resnet18-{DIGITS}.pth'


def in_cache():
    return sorted(path.name for path in named.cache().glob('*'))


def test_a_file_is_downloaded_once(server, tmp_path, caplog):
    server.answers[PATH] = good()
    with caplog.at_level(logging.INFO, 'css_jax'):
        path = named.path('resnet18', KEY)
    assert path == tmp_path / 'cache' / 'weights' / PATH[1:] and path.read_bytes() == WHOLE
    assert f'downloading {server.address}{PATH} to {path}' in caplog.text
    assert named.path('resnet18', KEY) == path and server.asked == [PATH]
    assert in_cache() == [PATH[1:], f'{PATH[1:]}.lock']
    assert not named.absent('resnet18') and named.absent('resnet34')


def test_without_a_length_all_that_comes_is_the_file(server):
    server.answers[PATH] = (200, None, WHOLE)
    assert named.path('resnet18', KEY).read_bytes() == WHOLE


@pytest.mark.parametrize(
    ('answer', 'words'),
    [
        ((200, len(WHOLE), WHOLE[:-9]), r'5,119,991 of 5,120,000 bytes have come'),
        ((200, None, WHOLE[:-9]), rf'has sha256 \w{{8}}, expected {DIGITS}'),
        (good(b'<html>no such file</html>'), rf'expected {DIGITS}'),
        ((404, 0, b''), '404'),
        ((503, 0, b''), '503'),
    ],
    ids=['cut off', 'cut off, of no length', 'a page', '404', '503'],
)
def test_what_is_not_whole_is_not_taken(answer, words, server):
    server.answers[PATH] = answer
    message = (
        rf'^model.pretrained=resnet18: \S*{PATH}: .*{words}.*; or download \S* to \S* yourself'
    )
    for _ in range(2):
        with pytest.raises(OSError, match=message):
            named.path('resnet18', KEY)
        assert not (named.cache() / PATH[1:]).exists()
    server.answers[PATH] = good()
    assert named.path('resnet18', KEY).read_bytes() == WHOLE
    assert in_cache() == [PATH[1:], f'{PATH[1:]}.lock'] and len(server.asked) == 3


def test_a_cache_that_cannot_be_made_is_told_with_its_variable(server, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv(named.CACHE, str(tmp_path / 'file'))
    with pytest.raises(OSError, match=r'^model.pretrained=resnet18: .*CSS_JAX_CACHE sets the fold'):
        named.path('resnet18', KEY)
    assert not server.asked


def test_the_cache_is_where_its_variables_say(monkeypatch):
    monkeypatch.delenv(named.CACHE, raising=False)
    for home, expected in (('/x', '/x/css_jax'), ('', '~/.cache/css_jax')):
        monkeypatch.setenv('XDG_CACHE_HOME', home)
        assert named.cache() == pathlib.Path(expected).expanduser() / 'weights'


def test_nobody_answers(server, monkeypatch):
    dead = published.NAMES['resnet18']._replace(url=f'http://localhost:1{PATH}')
    monkeypatch.setitem(published.NAMES, 'resnet18', dead)
    with pytest.raises(OSError, match='refused'):
        named.path('resnet18', KEY)


def test_what_a_killed_process_left_is_no_file(server):
    named.cache().mkdir(parents=True)
    (named.cache() / f'{PATH[1:]}.part').write_bytes(WHOLE + WHOLE)
    server.answers[PATH] = good()
    assert named.path('resnet18', KEY).read_bytes() == WHOLE


def test_two_at_once_download_once(server):
    server.answers[PATH] = good()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: named.path('resnet18', KEY), range(4)))
    assert len(set(paths)) == 1 and server.asked == [PATH]


def test_offline_nothing_is_asked(server, monkeypatch):
    monkeypatch.setenv(named.OFFLINE, '1')
    message = rf'{PATH[1:]} is not there and CSS_JAX_OFFLINE is set: download \S*{PATH} to'
    with pytest.raises(FileNotFoundError, match=message):
        named.path('resnet18', KEY)
    assert not server.asked and not named.cache().exists()
    named.cache().mkdir(parents=True)
    (named.cache() / PATH[1:]).write_bytes(WHOLE)
    assert named.path('resnet18', KEY).read_bytes() == WHOLE


def test_a_file_that_was_changed_is_named(server):
    named.cache().mkdir(parents=True)
    (named.cache() / PATH[1:]).write_bytes(WHOLE[:-1])
    with pytest.raises(ValueError, match=rf'{PATH[1:]} has sha256 \w{{8}}, expected .*remove it'):
        named.path('resnet18', KEY)
    assert not server.asked


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Installs a package of that name, which has a file of weights."""
    found = published.NAMES['efficientnet_lite0']
    folder = tmp_path / 'site'
    (folder / 'lite' / 'models').mkdir(parents=True)
    file = folder / 'lite' / 'models' / found.file
    file.write_bytes(WHOLE)
    info = folder / f'{found.package.replace("-", "_")}-0.1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {found.package}\nVersion: 0.1.0')
    (info / 'RECORD').write_text(f'lite/__init__.py,,\nlite/models/{found.file},,\n')
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(published.NAMES, 'efficientnet_lite0', found._replace(sha256=DIGITS))
    return file


def test_a_package_s_file_is_found(package):
    assert named.path('efficientnet_lite0', KEY) == package
    assert not named.absent('efficientnet_lite0')
    package.write_bytes(b'')
    with pytest.raises(ValueError, match=r'lite0\S* has sha256 \w{8}, expected'):
        named.path('efficientnet_lite0', KEY)
    package.unlink()
    with pytest.raises(FileNotFoundError, match='pip install --force-reinstall efficientnet-lite0'):
        named.path('efficientnet_lite0', KEY)


def test_a_missing_package_is_one_command(monkeypatch):
    missing = published.NAMES['efficientnet_lite1']._replace(package='no-such-model')
    monkeypatch.setitem(published.NAMES, 'efficientnet_lite1', missing)
    with pytest.raises(
        FileNotFoundError, match=r'^model.pretrained=\w*: .* pip install no-such-mo'
    ):
        named.path('efficientnet_lite1', KEY)


def test_addresses_are_those_of_the_pages():
    for name, found in published.NAMES.items():
        assert name == found.backbone and len(found.sha256) == 8
        if name.startswith('dinov2'):
            assert found.page == 'https://github.com/facebookresearch/dinov2/blob/main/README.md'
            file = f'dinov2_vit{name[7]}14'
            address = 'https://dl.fbaipublicfiles.com/dinov2'
            assert found.url == f'{address}/{file}/{file}_pretrain.pth'
            continue
        assert found.file.endswith(f'-{found.sha256}.pth')
        if isinstance(found, published.Package):
            assert found.page.startswith('https://pypi.org/')
        elif name.startswith('drn'):
            assert found.page.startswith('https://github.com/fyu/drn/')
            assert found.url == f'http://dl.yf.io/drn/{name}-{found.sha256}.pth'
        elif name.startswith('vit'):
            assert found.page.startswith('https://github.com/')
            address = 'https://dl.fbaipublicfiles.com/deit/deit_', 'https://github.com/rwightman/'
            assert found.url.startswith(address)
        else:
            assert found.page.startswith('https://github.com/pytorch/vision/')
            assert found.url == f'https://download.pytorch.org/models/{name}-{found.sha256}.pth'


# The configuration, and what downloads.


def named_config(**changes):
    c = tiny.get_config('supervised')
    c.model.update(width=1.0, pretrained='resnet18')
    c.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return c


def test_files_of_configs_name_their_weights():
    assert voc.get_config('classic,92').model.pretrained == 'resnet101'
    assert voc.get_config('blender').model.pretrained == 'resnet101'
    assert cityscapes.get_config('').model.pretrained == 'resnet101'
    for get_config in (voc.get_config, cityscapes.get_config, camvid.get_config):
        assert configs.finalise(get_config('pretrained=')).model.pretrained == ''
    lite = configs.finalise(camvid.get_config('46,css_mix,backbone=efficientnet_lite0'))
    assert lite.model.pretrained == 'efficientnet_lite0' and lite.model.width == 1.0
    # The stem is that of the weights, and the paper's where another file has them.
    assert voc.get_config('blender').model.stem == cityscapes.get_config('').model.stem == 'conv7'
    for config in (
        voc.get_config('blender,pretrained=x.pth'),
        cityscapes.get_config('pretrained='),
    ):
        assert config.model.stem == 'deep'


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'model__backbone': 'resnet50'}, r'model.backbone=resnet18 \(got resnet50\)'),
        ({'model__stem': 'deep'}, r'model.stem=conv7 \(got deep\)'),
        ({'model__width': 0.25}, r'model.width=1.0 \(got 0.25\)'),
    ],
)
def test_weights_of_another_network_are_told_at_once(changes, words):
    with pytest.raises(ValueError, match=rf"^model.pretrained: got 'resnet18', .*{words}"):
        configs.finalise(named_config(**changes))


def test_what_is_neither_name_nor_file_is_told_with_the_names(tmp_path):
    config = configs.finalise(named_config(model__pretrained='resnet152'))
    method = methods.METHODS[config.method]
    with pytest.raises(ValueError, match=r"got 'resnet152', expected one of resnet18,.* or a"):
        initial.load(config, method, methods.context(config))


def test_a_run_to_start_from_has_a_backbone_already(tmp_path):
    run_folder.save(configs.finalise(tiny.get_config()), tmp_path)
    config = named_config(init_from=str(tmp_path))
    final = configs.finalise(config)
    assert final.model.pretrained == ''
    told = warnings.warnings(config, final, {'labelled': 8})
    assert 'model.pretrained=resnet18 has no effect: the run in init_from has a backbone' in told[0]


def torch_file(ctx):
    """Bytes of a file by torchvision's names, and path -> array of what it has."""
    shapes = state.flat(state.shapes(ctx))
    backbone = {name: like for name, like in shapes.items() if '/backbone/' in name}
    rng, tree, expected = np.random.default_rng(0), {}, {}
    for i, (name, path) in enumerate(layouts.TORCH.names(backbone).items()):
        expected[path] = rng.uniform(size=backbone[path].shape).astype(np.float32)
        there = expected[path]
        there = there.transpose(3, 2, 0, 1) if there.ndim == 4 else there
        numbers = Storage(str(i), 'FloatStorage', np.ascontiguousarray(there).ravel())
        strides = [int(np.prod(there.shape[axis + 1 :])) for axis in range(there.ndim)]
        tree[name] = tensor(numbers, there.shape, tuple(strides))
    file = io.BytesIO()
    save(file, tree)
    return file.getvalue(), expected


def test_the_start_of_a_run_downloads_and_nothing_before(
    server, shallow, monkeypatch, tmp_path, data_dir, caplog
):
    config = named_config(data__dir=data_dir)
    final = configs.finalise(config)
    method, ctx = methods.METHODS['supervised'], methods.context(final)
    body, expected = torch_file(ctx)
    digits = hashlib.sha256(body).hexdigest()[:8]
    found = published.NAMES['resnet18']
    found = found._replace(url=f'{server.address}/resnet18-{digits}.pth', sha256=digits)
    monkeypatch.setitem(published.NAMES, 'resnet18', found)
    server.answers[f'/resnet18-{digits}.pth'] = good(body)

    class Shown(Exception):
        """Ends the preview where it makes the networks."""

    def create(method, tx, ctx, given):
        assert given == {}
        raise Shown

    with caplog.at_level(logging.INFO, 'css_jax'), monkeypatch.context() as patch:
        patch.setattr(state, 'create', create)
        with pytest.raises(Shown):
            preview.preview(config, tmp_path / 'x')
    assert 'resnet18 is downloaded when training begins' in caplog.text
    assert not server.asked

    given = initial.load(final, method, ctx)['student']
    assert server.asked and given.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(given[path], array)
