// What a cache is armed with: see restkv_arm(), restkv_arm_shares() and
// restkv_arm_archive().

#pragma once

#include "restkv.h"
#include "stages/share_heads.h"

#include <memory>
#include <string>

struct restkv_archive_settings {
    restkv_archive_params params = {};  // its path is not used
    std::string           path;
};

struct restkv_settings {
    restkv_params           params;
    std::string             path_model;
    std::string             path_cache;
    restkv_shares           shares;
    restkv_archive_settings archive;
};

// What the next context of this thread gets.
extern thread_local std::unique_ptr<restkv_settings> restkv_pending;
