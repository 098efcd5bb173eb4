"""The programs: `restkv-chat` (chat.py) and `restkv-bench` (bench.py)."""
