"""Prepares `cityscapes` from the two archives you have downloaded."""

from data_prep import command
from data_prep.cityscapes import builder

if __name__ == '__main__':
    command.run('cityscapes', __doc__, builder, check=builder.find_archives)
