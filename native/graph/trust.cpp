#include "graph/trust.h"

#include <map>
#include <mutex>

static std::mutex                         lock;
static std::map<std::string, std::string> reasons;  // by device

void restkv_set_distrust(const std::string & device, const std::string & reason) {
    const std::lock_guard<std::mutex> guard(lock);
    reasons[device] = reason;
}

std::string restkv_distrusted(const std::string & device) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto                        found = reasons.find(device);
    return found == reasons.end() ? "" : found->second;
}
