"""What `--mode report` puts on its page: a module a section, and how the page is made."""
