#pragma once
#include <hs/hs.h>

// What Swift has no word for: asks the processor to fetch a line of its cache. Reads nothing.
static inline void vmfence_prefetch(const void *address) { __builtin_prefetch(address, 1, 3); }
