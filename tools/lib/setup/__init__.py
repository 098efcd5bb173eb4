"""The pinned source, its patches, and the environment. A bare Python runs it: the standard library alone."""
