"""Where the tests' own files are, for processes that run one of them."""

from __future__ import annotations

import os
from pathlib import Path

from lib.setup.source import ROOT

SUPPORT = Path(__file__).parent
# PYTHONPATH of such a process.
PATHS = os.pathsep.join([str(SUPPORT), str(ROOT / "tools"), str(ROOT)])
