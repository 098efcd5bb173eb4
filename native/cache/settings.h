// What a cache is armed with: see restkv_arm() and restkv_arm_shares().

#pragma once

#include "restkv.h"
#include "stages/share_heads.h"

#include <memory>
#include <string>

struct restkv_settings {
    restkv_params params;
    std::string   path_model;
    std::string   path_cache;
    restkv_shares shares;
};

// What the next context of this thread gets.
extern thread_local std::unique_ptr<restkv_settings> restkv_pending;
