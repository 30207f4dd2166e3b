"""Prepares `camvid` from files you have downloaded."""

from data_prep import command
from data_prep.camvid import builder

if __name__ == '__main__':
    command.run('camvid', __doc__, builder, check=builder.check_source)
