"""An engine: llama_cpp.Llama on a cache that evicts, how it reads and answers, and what it reports.

`from restkv_local import Engine`; nothing is imported here, because `engine.report` is of use without the library.
"""
