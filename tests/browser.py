"""Chromium without a window, driven through a pipe by its DevTools protocol: no package needed."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
_OPTIONS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--no-first-run',
    '--disable-dev-shm-usage', '--remote-debugging-pipe', '--disable-background-networking',
)  # fmt: skip
_SECONDS = 90  # for an answer, where the machine is busy


class Page:
    """A page in a browser; `complaints` are its errors and warnings, `asked` what it loaded."""

    def __init__(self, write, read, url):
        self._write, self._read, self._rest, self._number = write, read, b'', 0
        self.complaints, self.asked, self._session, self._loaded = [], [], None, False
        target = self._send('Target.createTarget', url='about:blank')['targetId']
        attached = self._send('Target.attachToTarget', targetId=target, flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self._send(f'{domain}.enable')
        self._send('Page.navigate', url=url)
        while not self._loaded:
            self._receive()

    def evaluate(self, expression):
        """Return the value of a JavaScript expression."""
        found = self._send(
            'Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def look(self, width, dark=False):
        """Set the width of the window, in pixels, and the colour scheme."""
        self._send(
            'Emulation.setDeviceMetricsOverride',
            width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self._send('Emulation.setEmulatedMedia', features=[scheme])

    def press(self, key):
        """Press a key: 'Enter' or 'Tab'."""
        code = {'Enter': 13, 'Tab': 9}[key]
        text = {'text': '\r'} if key == 'Enter' else {}
        for kind in ('keyDown', 'keyUp'):
            self._send(
                'Input.dispatchKeyEvent', type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, **(text if kind == 'keyDown' else {}),
            )  # fmt: skip

    def screenshot(self, path, top=0, height=None):
        """Write the whole page, or a part of it, as a PNG."""
        width = self.evaluate('innerWidth')
        height = height or self.evaluate('document.documentElement.scrollHeight') - top
        clip = {'x': 0, 'y': top, 'width': width, 'height': height, 'scale': 1}
        found = self._send('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found['data']))

    def _send(self, method, **params):
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        while (answer := self._receive()).get('id') != self._number:
            pass
        assert 'error' not in answer, answer
        return answer['result']

    def _receive(self):
        until = time.monotonic() + _SECONDS
        while b'\0' not in self._rest:
            assert select.select([self._read], [], [], until - time.monotonic())[0], 'no answer'
            self._rest += os.read(self._read, 1 << 20)
        line, _, self._rest = self._rest.partition(b'\0')
        message = json.loads(line)
        params = message.get('params', {})
        match message.get('method'):
            case 'Page.loadEventFired':
                self._loaded = True
            case 'Log.entryAdded' if params['entry']['level'] in ('error', 'warning'):
                self.complaints.append(params['entry']['text'])
            case 'Runtime.consoleAPICalled' | 'Runtime.exceptionThrown':
                self.complaints.append(params)
            case 'Network.requestWillBeSent':
                self.asked.append(params['request']['url'])
        return message


@contextlib.contextmanager
def opened(path):
    """Open a file in Chromium."""
    to_browser, of_us = os.pipe()
    for_us, of_browser = os.pipe()

    # The option above has the browser read from 3 and write to 4.
    redirected = f'exec "$@" 3<&{to_browser} 4>&{of_browser}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            ['bash', '-c', redirected, 'bash', CHROMIUM, *_OPTIONS, f'--user-data-dir={folder}'],
            pass_fds=(to_browser, of_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(of_browser)
        try:
            yield Page(of_us, for_us, path.absolute().as_uri())
        finally:
            os.close(of_us)
            process.terminate()
            process.wait(30)
            os.close(for_us)
