"""Prepares `ade20k` from the published archive, which it can download, or from what is in it."""

from data_prep import command
from data_prep.ade20k import builder

if __name__ == '__main__':
    command.run('ade20k', __doc__, builder, check=builder.find_source, download=builder.download)
