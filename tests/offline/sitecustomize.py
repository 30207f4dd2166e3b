"""No network but loopback in the tests, and in every Python that they start.

To import this file is what blocks it. tests/conftest.py does so and puts this folder on
PYTHONPATH, where an interpreter finds a `sitecustomize` and imports it by itself. A process that is
no Python, such as a browser, or a library with sockets of its own, such as gRPC, is not held back.
"""

import ipaddress
import socket
import sys

_SENT_TO = ('socket.connect', 'socket.sendto', 'socket.sendmsg')
_LOOKED_UP = ('socket.getaddrinfo', 'socket.gethostbyname', 'socket.gethostbyaddr')


def _is_here(host):
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, '', 'localhost', socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name
    return address.is_loopback or address.is_unspecified  # all of this machine's own


def _refuse(event, given):
    """Raises OSError, which programs take for an unreachable network, before anything is sent."""
    if event in _SENT_TO:
        one, address = given
        host = address[0] if address and one.family in (socket.AF_INET, socket.AF_INET6) else None
    elif event in _LOOKED_UP:
        host = given[0]
    else:
        return
    if not _is_here(host):
        raise OSError(f'tests have no network: got host {host!r} in {event}, expected loopback')


sys.addaudithook(_refuse)
