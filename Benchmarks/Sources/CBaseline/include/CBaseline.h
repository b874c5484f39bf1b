// What benchmarks compare with, and count with.
#ifndef VMFENCE_C_BASELINE_H
#define VMFENCE_C_BASELINE_H

#include <stddef.h>
#include <stdint.h>

// Allocations of this process so far (malloc, calloc, realloc, and the aligned ones), counted by wrappers that the executable puts
// before the C library's.
uint64_t baseline_allocation_count(void);

// Decodes each frame (Ethernet, at most one VLAN tag, IPv4, TCP or UDP, lengths checked) into a struct with the fields that
// DecodedPacket fills for such frames, and hashes the 5-tuple: the plain C of it. Frame i lies at base + offsets[i] with lengths[i]
// bytes. Returns a sum of the hashes, so that nothing can be left out.
uint64_t baseline_decode(const uint8_t *base, const uint64_t *offsets, const uint32_t *lengths, size_t count);

// Copies each frame to the same place.
uint64_t baseline_copy(
    const uint8_t *base, const uint64_t *offsets, const uint32_t *lengths, size_t count, uint8_t *to);

// Takes a result, so that the compiler cannot leave out what led to it.
void baseline_keep(uint64_t value);

#endif
