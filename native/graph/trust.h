// Devices whose results were found wrong: no eviction of this process runs as graphs there.

#pragma once

#include <string>

void restkv_set_distrust(const std::string & device, const std::string & reason);  // reason "": trusted again

// Why a device is not trusted, or "".
std::string restkv_distrusted(const std::string & device);
