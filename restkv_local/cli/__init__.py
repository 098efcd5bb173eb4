"""The programs `restkv-chat`, `restkv-bench` and `restkv-eval`: each has a folder and begins in its main.py."""
