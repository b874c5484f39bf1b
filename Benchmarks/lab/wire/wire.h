// What the programs of `wire` share.
#ifndef VMFENCE_WIRE_H
#define VMFENCE_WIRE_H

#include <stdint.h>

// Nanoseconds of CLOCK_MONOTONIC.
uint64_t wire_now(void);
void wire_wait_until(uint64_t time);
// Puts the calling thread into a network namespace that ip-netns(8) made. Sockets that it opens then stay there. Ends the program when
// there is none.
void wire_enter(const char *name);
void wire_fail(const char *what);
// The Internet checksum (RFC 1071) of `length` bytes, going on from `sum`.
uint16_t wire_checksum(const uint8_t *bytes, int length, uint32_t sum);

int wire_http(int count, char **arguments);
int wire_flood(int count, char **arguments);
int wire_latency(int count, char **arguments);

#endif
