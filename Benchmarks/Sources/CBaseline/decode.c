#include "CBaseline.h"

#include <stdbool.h>
#include <string.h>

struct packet {
  uint64_t source_mac, destination_mac;
  uint16_t vlan, ether_type;
  uint32_t network_offset, network_end;
  uint64_t source, destination;
  uint8_t protocol, ttl, flags;
  uint16_t id;
  uint32_t transport_offset, sequence, acknowledgement;
  uint16_t source_port, destination_port, window;
  uint32_t payload_offset, payload_length;
};

static inline uint16_t be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static inline uint32_t be32(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return __builtin_bswap32(v);
}

static inline uint64_t mac(const uint8_t *p) { return (uint64_t)be16(p) << 32 | be32(p + 2); }

static __attribute__((noinline)) bool decode(const uint8_t *p, uint32_t length, struct packet *out) {
  if (length < 14) return false;
  uint32_t at = 14;
  uint16_t type = be16(p + 12);
  out->vlan = 0;
  if (type == 0x8100) {
    if (length < 18) return false;
    out->vlan = be16(p + 14);
    type = be16(p + 16);
    at = 18;
  }
  if (type != 0x0800 || length - at < 20 || p[at] >> 4 != 4) return false;
  uint32_t header = (p[at] & 15) * 4u;
  uint32_t total = be16(p + at + 2);
  if (header < 20 || total < header || total > length - at) return false;
  if (be16(p + at + 6) & 0x3FFF) return false;
  out->source_mac = mac(p + 6);
  out->destination_mac = mac(p);
  out->ether_type = type;
  out->network_offset = at;
  uint32_t end = out->network_end = at + total;
  out->id = be16(p + at + 4);
  out->ttl = p[at + 8];
  out->protocol = p[at + 9];
  out->source = be32(p + at + 12);
  out->destination = be32(p + at + 16);
  at += header;
  out->transport_offset = at;
  if (out->protocol == 6) {
    if (end - at < 20) return false;
    uint32_t offset = (p[at + 12] >> 4) * 4u;
    if (offset < 20 || offset > end - at) return false;
    out->sequence = be32(p + at + 4);
    out->acknowledgement = be32(p + at + 8);
    out->flags = p[at + 13];
    out->window = be16(p + at + 14);
    out->payload_offset = at + offset;
  } else if (out->protocol == 17) {
    if (end - at < 8 || be16(p + at + 4) < 8 || be16(p + at + 4) > end - at) return false;
    out->payload_offset = at + 8;
  } else {
    return false;
  }
  out->source_port = be16(p + at);
  out->destination_port = be16(p + at + 2);
  out->payload_length = end - out->payload_offset;
  return true;
}

static inline uint64_t hash(const struct packet *p) {
  bool forward = p->source < p->destination || (p->source == p->destination && p->source_port <= p->destination_port);
  uint64_t a = forward ? p->source : p->destination, b = forward ? p->destination : p->source;
  uint64_t ports = forward ? (uint64_t)p->source_port << 16 | p->destination_port
                           : (uint64_t)p->destination_port << 16 | p->source_port;
  unsigned __int128 x = (unsigned __int128)((a << 32 | b) ^ 0x9E3779B97F4A7C15u) * ((ports << 8 | p->protocol) ^ 0xBF58476D1CE4E5B9u);
  return (uint64_t)(x >> 64) ^ (uint64_t)x;
}

uint64_t baseline_decode(const uint8_t *base, const uint64_t *offsets, const uint32_t *lengths, size_t count) {
  uint64_t sum = 0;
  struct packet packet;
  memset(&packet, 0, sizeof packet);
  for (size_t i = 0; i < count; i++)
    if (decode(base + offsets[i], lengths[i], &packet)) sum += hash(&packet) + packet.payload_length;
  return sum;
}

uint64_t baseline_copy(
    const uint8_t *base, const uint64_t *offsets, const uint32_t *lengths, size_t count, uint8_t *to) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++) {
    memcpy(to, base + offsets[i], lengths[i]);
    __asm__ volatile("" : : "r"(to) : "memory");
    sum += lengths[i];
  }
  return sum;
}

void baseline_keep(uint64_t value) { __asm__ volatile("" : : "r"(value)); }
