#!/usr/bin/env python3
"""Run the tests: makes what is needed the first time, then runs pytest with the arguments given here."""

import sys

if sys.version_info < (3, 10):
    sys.exit("test.py: Python 3.10 or newer is needed, this is %d.%d; install a newer python3" % sys.version_info[:2])

import os

from lib.setup import source, venv

if __name__ == "__main__":
    # Arguments are paths inside the repository, wherever this is called from.
    os.chdir(source.ROOT)
    sys.exit(venv.main("pytest", sys.argv[1:], tests=True))
