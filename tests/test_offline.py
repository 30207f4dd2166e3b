"""Tests, what they start, and the imports of the package have no network but loopback."""

import socket
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT

ABROAD = '192.0.2.1'  # of a block that is nobody's
REFUSED = 'tests have no network'


@pytest.mark.parametrize(
    'ask',
    [
        lambda: socket.create_connection((ABROAD, 80), timeout=1),
        lambda: socket.socket().connect((ABROAD, 80)),
        lambda: socket.socket(socket.AF_INET6).connect_ex(('2001:db8::1', 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'', (ABROAD, 53)),
        lambda: socket.getaddrinfo('example.org', 443),
        lambda: socket.gethostbyname('example.org'),
    ],
)
def test_no_other_machine_is_reached(ask):
    with pytest.raises(OSError, match=REFUSED):
        ask()


def test_loopback_and_unix_sockets_work(tmp_path):
    with socket.create_server(('localhost', 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / 'socket'))
        server.listen()
        client.connect(str(tmp_path / 'socket'))


def python(program):
    """What an interpreter prints and its errors, of a program of its own."""
    command = [sys.executable, '-c', textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.stdout, done.stderr


def test_a_process_of_a_test_reaches_no_other_machine():
    _, errors = python(f"import socket; socket.create_connection(('{ABROAD}', 80), timeout=1)")
    assert REFUSED in errors


def test_to_import_the_package_asks_for_no_network():
    """Not even in vain: a library may go on where there is none."""
    found, errors = python("""
        import importlib, pkgutil, sys
        import configs, css_jax, data_prep

        def note(event, given):
            if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname'):
                print(event, given[-1])

        sys.addaudithook(note)
        for package in (configs, css_jax, data_prep):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
                importlib.import_module(module.name)
        print(len([name for name in sys.modules if name.startswith('css_jax.')]), 'modules')
    """)
    assert 'Traceback' not in errors, errors
    *asked, count = found.splitlines()
    assert not asked and int(count.removesuffix(' modules')) > 100
