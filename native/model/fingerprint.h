// What tells one model from another: saved states and sessions carry it, since rows of K and V mean nothing to other
// weights.

#pragma once

#include <string>

// Of a GGUF file (the first file of a split model): all metadata, and the name, type, shape and sampled bytes of every
// tensor. The same model has the same fingerprint in one file and in several. It starts with the number of this recipe.
// Throws restkv_error with RESTKV_IO.
std::string restkv_fingerprint_of(const std::string & path);
