"""What a run says while it trains: short lines, and a bar in a terminal."""

import io
import logging

import numpy as np

from css_jax.evaluation import targets
from css_jax.run import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_has_what_matters_and_the_record_the_rest():
    values = {
        'gradient_norm': 3.0, 'loss_unsupervised': 0.25, 'loss': 1.5, 'loss_supervised': 1.25,
        'confident': 0.4, 'anchors': 99.0, 'images_per_second': 12.34, 'seconds_to_go': 61.0,
        'learning_rate': 0.1,
    }  # fmt: skip
    line = progress.line(50, 900, values)
    assert line == (
        'step  50/900   5%  loss  1.500  supervised  1.250  unsupervised  0.250  confident  0.400  '
        '12.3 img/s  to go 01:01'
    )
    assert len(progress.line(900, 900, values)) == len(line)


def test_a_bar_is_for_terminals_alone(monkeypatch):
    for stream, seen in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr('sys.stderr', stream)
        out = io.StringIO()
        log = logging.Logger('x')
        log.addHandler(progress.Lines(out))
        bar = progress.Bar(3, 10)
        bar.step()
        bar.say(to_go='00:09', loss='0.5')
        log.info('a line')
        bar.say(mIoU='71.2')
        bar.close()
        assert out.getvalue() == 'a line\n'
        assert ('to go 00:09, loss 0.5, mIoU 71.2' in stream.getvalue()) == seen
        assert ('step 4/10' in stream.getvalue()) == seen
    other = Terminal()
    monkeypatch.setattr('sys.stderr', other)
    progress.Bar(0, 3, shown=False).step()  # as of another process of the run
    assert other.getvalue() == ''


def test_a_reader_that_has_gone_stops_nothing(capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    log = logging.Logger('x')
    log.addHandler(progress.Lines(Closed()))
    log.info('a line')
    assert capsys.readouterr().err == ''


def test_a_preview_without_prototypes_says_so():
    labels = np.full((2, 4, 4), -1)
    assert not targets._any(type('T', (), {'weak_label_rep': labels})(), 'weak_label_rep')
    labels[0, 0, 0] = 3
    assert targets._any(type('T', (), {'weak_label_rep': labels})(), 'weak_label_rep')
    assert targets._any((), 'weak_label_rep')
