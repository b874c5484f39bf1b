// UDP datagrams to port 9999 from many sources, at a given rate: the first bytes of the address are 10.128, the rest counts up.
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, FRAME = 256, HEADERS = 14 + 20 + 8 };

static void put16(uint8_t *at, unsigned value) {
  at[0] = (uint8_t)(value >> 8);
  at[1] = (uint8_t)value;
}

int wire_flood(int count, char **arguments) {
  if (count < 7) return 64;
  const char *interface = arguments[1];
  unsigned mac[6];
  uint8_t target[4];
  if (sscanf(arguments[2], "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6 ||
      inet_pton(AF_INET, arguments[3], target) != 1)
    return 64;
  double rate = atof(arguments[4]), seconds = atof(arguments[5]);
  uint32_t sources = (uint32_t)strtoul(arguments[6], NULL, 10);
  const char *text = count > 7 ? arguments[7] : "hello";
  int length = (int)strlen(text);
  if (rate <= 0 || sources == 0 || length > FRAME - HEADERS) return 64;

  wire_enter(arguments[0]);
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
  if (fd < 0) wire_fail("packet socket");
  struct ifreq request = {0};
  strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
  if (ioctl(fd, SIOCGIFHWADDR, &request) != 0) wire_fail(interface);
  uint8_t own[6];
  memcpy(own, request.ifr_hwaddr.sa_data, 6);
  struct sockaddr_ll address = {
    .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface), .sll_halen = 6};

  static uint8_t frames[BATCH][FRAME];
  struct mmsghdr messages[BATCH];
  struct iovec vectors[BATCH];
  memset(messages, 0, sizeof messages);
  for (int index = 0; index < BATCH; index++) {
    uint8_t *frame = frames[index];
    for (int byte = 0; byte < 6; byte++) frame[byte] = (uint8_t)mac[byte];
    memcpy(frame + 6, own, 6);
    put16(frame + 12, ETHERTYPE_IP);
    frame[14] = 0x45;
    put16(frame + 16, (unsigned)(20 + 8 + length));
    frame[22] = 64;
    frame[23] = 17;
    memcpy(frame + 30, target, 4);
    put16(frame + 34, 40000);
    put16(frame + 36, 9999);
    put16(frame + 38, (unsigned)(8 + length));
    memcpy(frame + HEADERS, text, (size_t)length);
    vectors[index] = (struct iovec){.iov_base = frame, .iov_len = (size_t)(HEADERS + length)};
    messages[index].msg_hdr = (struct msghdr){
      .msg_name = &address, .msg_namelen = sizeof address, .msg_iov = &vectors[index], .msg_iovlen = 1};
  }
  uint64_t begin = wire_now(), end = begin + (uint64_t)(seconds * 1e9), sent = 0, refused = 0;
  uint32_t source = 0;
  while (wire_now() < end) {
    uint64_t due = (uint64_t)((double)(wire_now() - begin) * rate / 1e9);
    if (sent >= due) {
      wire_wait_until(wire_now() + 200000);
      continue;
    }
    int batch = due - sent < BATCH ? (int)(due - sent) : BATCH;
    for (int index = 0; index < batch; index++) {
      uint8_t *ip = frames[index] + 14;
      uint32_t value = htonl(0x0A800000u + source);
      source = (source + 1) % sources;
      memcpy(ip + 12, &value, 4);
      put16(ip + 10, 0);
      put16(ip + 10, wire_checksum(ip, 20, 0));
    }
    int done = sendmmsg(fd, messages, (unsigned)batch, 0);
    if (done < 0) {
      if (errno != ENOBUFS && errno != EAGAIN) wire_fail("send");
      refused++;
      continue;
    }
    sent += (uint64_t)done;
  }
  double took = (double)(wire_now() - begin) / 1e9;
  printf("{\"sent\": %llu, \"seconds\": %.3f, \"rate\": %.0f, \"waits\": %llu}\n", (unsigned long long)sent, took,
         (double)sent / took, (unsigned long long)refused);
  close(fd);
  return 0;
}
