#!/usr/bin/env python3
"""Talk with a model: makes what is needed the first time, then starts restkv-chat with the arguments given here."""

import sys

if sys.version_info < (3, 10):
    sys.exit("chat.py: Python 3.10 or newer is needed, this is %d.%d; install a newer python3" % sys.version_info[:2])

from lib.setup import venv

if __name__ == "__main__":
    sys.exit(venv.main("restkv-chat", sys.argv[1:], tests=False))
