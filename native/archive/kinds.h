// The two places of an archive; restkv_archive::make() chooses.

#pragma once

#include "archive/store.h"

std::unique_ptr<restkv_archive> restkv_make_archive_ram(uint32_t n_ctx, std::vector<restkv_archive_layer> layers);
std::unique_ptr<restkv_archive> restkv_make_archive_file(const std::string & path, uint32_t n_ctx,
                                                         std::vector<restkv_archive_layer> layers);
