#!/usr/bin/env python3
"""Write a model with random weights in the shape of a published one: makes what is needed the first time, then runs
`restkv-bench shapes` with the arguments given here."""

import sys

if sys.version_info < (3, 10):
    sys.exit("shapes.py: Python 3.10 or newer is needed, this is %d.%d; install a newer python3" % sys.version_info[:2])

from lib.setup import venv

if __name__ == "__main__":
    sys.exit(venv.main("restkv-bench", ["shapes", *sys.argv[1:]], tests=False))
