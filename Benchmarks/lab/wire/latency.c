// From the attack's packet to the block in force, seen from outside: a source sends an attack over a real TCP connection, then numbered UDP
// datagrams at a fixed interval. The block is in force at the first datagram that does not arrive: its time of sending is the sample (at most one
// interval too much). Each sample has a source of its own, 10.64.0.0 and up, which the attacker's namespace must route to itself
// (ip route add local 10.64.0.0/10 dev lo) and the guest to the attacker.
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char attack[] = "GET /../../etc/passwd HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n";

enum { PROBE_PORT = 9998, PROBES = 1 << 16 };

struct probe {
  uint32_t sample;
  uint32_t number;
};

static int open_socket(int type, struct in_addr source) {
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), on = 1;
  struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr = source};
  if (fd < 0 || setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on) != 0 ||
      bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
    wire_fail("a socket of the attacker");
  return fd;
}

// The highest number of this sample that has arrived, or `highest`.
static int64_t collect(int fd, uint32_t sample, int64_t highest) {
  struct probe probe;
  while (recv(fd, &probe, sizeof probe, MSG_DONTWAIT) == (ssize_t)sizeof probe)
    if (probe.sample == sample && (int64_t)probe.number > highest) highest = probe.number;
  return highest;
}

// Nanoseconds; 0 when there was no block within the time, -1 when there was no connection.
static int64_t measure(
  uint32_t sample, struct in_addr source, struct sockaddr_in guest, int receiver, uint64_t interval, uint64_t timeout) {
  static uint64_t sent[PROBES];
  int connection = open_socket(SOCK_STREAM, source), prober = open_socket(SOCK_DGRAM, source), on = 1;
  struct timeval patience = {.tv_sec = (time_t)(timeout / 1000000000u), .tv_usec = (suseconds_t)(timeout % 1000000000u / 1000)};
  setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  int64_t result = -1;
  if (connect(connection, (struct sockaddr *)&guest, sizeof guest) == 0) {
    struct sockaddr_in target = guest;
    target.sin_port = htons(PROBE_PORT);
    collect(receiver, sample, -1);
    uint64_t begin = wire_now();
    if (send(connection, attack, sizeof attack - 1, MSG_NOSIGNAL) != (ssize_t)sizeof attack - 1) wire_fail("attack");
    int64_t highest = -1;
    result = 0;
    for (uint32_t number = 0; number < PROBES && wire_now() - begin < timeout; number++) {
      struct probe probe = {.sample = sample, .number = number};
      sent[number] = wire_now();
      if (sendto(prober, &probe, sizeof probe, 0, (struct sockaddr *)&target, sizeof target) < 0 && errno != EPERM)
        wire_fail("probe");
      highest = collect(receiver, sample, highest);
      // A datagram crosses the bridge within the call that sends it, unless the machine is busy: what is only late comes within the pause.
      if ((int64_t)number - highest >= 5 && sent[number] - sent[highest + 1] >= 2000000) {
        wire_wait_until(wire_now() + 20000000);
        int64_t late = collect(receiver, sample, highest);
        if (late == highest) {
          result = (int64_t)(sent[highest + 1] - begin);
          break;
        }
        highest = late;
      }
      wire_wait_until(sent[number] + interval);
    }
  }
  // Without a farewell, which nobody would get: a reset.
  struct linger hard = {.l_onoff = 1, .l_linger = 0};
  setsockopt(connection, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(connection);
  close(prober);
  return result;
}

int wire_latency(int count, char **arguments) {
  if (count < 6) return 64;
  struct sockaddr_in guest = {.sin_family = AF_INET, .sin_port = htons(80)};
  if (inet_pton(AF_INET, arguments[2], &guest.sin_addr) != 1) return 64;
  int samples = atoi(arguments[3]);
  uint64_t interval = strtoull(arguments[4], NULL, 10) * 1000, timeout = strtoull(arguments[5], NULL, 10) * 1000000;
  uint32_t first = count > 6 ? (uint32_t)strtoul(arguments[6], NULL, 10) : 0;

  wire_enter(arguments[1]);
  int receiver = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), room = 8 << 20;
  struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(PROBE_PORT)};
  setsockopt(receiver, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
  if (receiver < 0 || bind(receiver, (struct sockaddr *)&own, sizeof own) != 0) wire_fail("the guest's socket");
  wire_enter(arguments[0]);
  // One line each, in microseconds; `none` without a block in time, `refused` without a connection.
  for (int sample = 0; sample < samples; sample++) {
    struct in_addr source = {.s_addr = htonl(0x0A400000u + first + (uint32_t)sample)};
    int64_t took = measure((uint32_t)sample, source, guest, receiver, interval, timeout);
    if (took > 0) printf("%.1f\n", (double)took / 1000);
    else printf(took == 0 ? "none\n" : "refused\n");
    fflush(stdout);
    // Not in step with anybody's ticks.
    wire_wait_until(wire_now() + 3000000 + (uint64_t)(rand() % 7000) * 1000);
  }
  return 0;
}
