"""Prepares `idd` from the archive you have downloaded, or from the folder in it."""

from data_prep import command
from data_prep.idd import builder

if __name__ == '__main__':
    command.run('idd', __doc__, builder, check=builder.find_source)
