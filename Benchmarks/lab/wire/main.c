// Measuring a host from outside: requests at a fixed rate, a flood from many sources, and how long after an attack its sender is cut off.
// Used by Benchmarks/evaluation, inside network namespaces only.
//
//   wire http ADDRESS PATH CONNECTIONS REQUESTS/S SECONDS SEED TIMES-FILE
//   wire flood NAMESPACE INTERFACE TARGET-MAC TARGET-ADDRESS PACKETS/S SECONDS SOURCES [TEXT]
//   wire latency ATTACKER-NAMESPACE GUEST-NAMESPACE GUEST-ADDRESS SAMPLES PROBE-INTERVAL-US TIMEOUT-MS [FIRST-SOURCE]
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t wire_now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void wire_wait_until(uint64_t time) {
  struct timespec until = {.tv_sec = (time_t)(time / 1000000000u), .tv_nsec = (long)(time % 1000000000u)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
}

void wire_fail(const char *what) {
  fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
  exit(1);
}

void wire_enter(const char *name) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) wire_fail(path);
  close(fd);
}

uint16_t wire_checksum(const uint8_t *bytes, int length, uint32_t sum) {
  for (int index = 0; index + 1 < length; index += 2) sum += (uint32_t)(bytes[index] << 8 | bytes[index + 1]);
  if (length & 1) sum += (uint32_t)bytes[length - 1] << 8;
  while (sum >> 16) sum = (sum & 0xFFFF) + (sum >> 16);
  return (uint16_t)~sum;
}

int main(int count, char **arguments) {
  if (count >= 2 && strcmp(arguments[1], "http") == 0) return wire_http(count - 2, arguments + 2);
  if (count >= 2 && strcmp(arguments[1], "flood") == 0) return wire_flood(count - 2, arguments + 2);
  if (count >= 2 && strcmp(arguments[1], "latency") == 0) return wire_latency(count - 2, arguments + 2);
  fprintf(stderr, "usage: wire http|flood|latency … (see main.c)\n");
  return 64;
}
