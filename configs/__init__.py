"""One file per family of experiments; get_config(argument) gives its configuration."""
