"""`figures`: drawn images as those of `shapes`, of other classes in other colours."""
