"""Prepares `voc` from the published archives, which it can download."""

from data_prep import command
from data_prep.voc import builder

if __name__ == '__main__':
    command.run('voc', __doc__, builder, check=builder.find_archives, download=builder.download)
