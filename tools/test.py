#!/usr/bin/env python3
"""Run the tests: makes what is needed the first time, then runs pytest with the arguments given here."""

import sys

if sys.version_info < (3, 10):
    sys.exit("test.py: Python 3.10 or newer is needed, this is %d.%d; install a newer python3" % sys.version_info[:2])

import os

import _env
import _source

if __name__ == "__main__":
    # Arguments are paths inside the repository, wherever this is called from.
    os.chdir(_source.ROOT)
    sys.exit(_env.main("pytest", sys.argv[1:], tests=True))
