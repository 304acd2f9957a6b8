"""The command line: each module adds its sub-commands to ``COMMANDS`` in ``broker/__main__.py``."""
