"""The far end of ggml's RPC backend on loopback: a device whose memory the host cannot reach.

    python rpc_peer.py FOLDER PORT      serve this machine's CPU until the process is ended
"""

from __future__ import annotations

import ctypes
import sys

from devices import library


def serve(folder: str, port: str) -> None:
    """Serve the CPU."""
    ggml, rpc = library("ggml", folder), library("ggml-rpc", folder)
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_type(0))
    one = ctypes.c_size_t(1)
    rpc.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, one, one, devices)


if __name__ == "__main__":
    serve(*sys.argv[1:3])
