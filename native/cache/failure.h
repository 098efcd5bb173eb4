// Why something failed, where there may be no memory left to say it in.

#pragma once

#include "restkv.h"

// Inside a catch block: why, without taking memory. False where that has run out.
bool restkv_reason(char (&why)[RESTKV_REASON_MAX]) noexcept;
