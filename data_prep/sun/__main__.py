"""Prepares `sun` from the archives you have downloaded, or from the folders in them."""

from data_prep import command
from data_prep.sun import builder

if __name__ == '__main__':
    command.run('sun', __doc__, builder, check=builder.find_source)
