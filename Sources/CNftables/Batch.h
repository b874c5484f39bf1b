// Shared by this library's own files.
#ifndef VMFENCE_CNFTABLES_BATCH_H
#define VMFENCE_CNFTABLES_BATCH_H

#include "include/CNftables.h"

#include <netinet/in.h>

#include <libmnl/libmnl.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>

// No message is longer: the length of a netlink attribute has 16 bits.
#define VMFENCE_MESSAGE_ROOM (80 * 1024)
// Elements are gathered until a message has this length; one more always fits.
#define VMFENCE_ELEMENTS_FULL (56 * 1024)

struct vmfence_nft_batch {
  char *bytes;
  size_t size;
  size_t capacity;
  int error;
  uint8_t family;
  char table[NFT_TABLE_MAXNAMELEN];
  uint32_t sequence;
  uint32_t count;
  // The last message that was written, as an offset.
  size_t last;
  struct nftnl_rule *rule;
  // The elements' message that is open, as offsets.
  int has_open_message;
  int deletes;
  size_t open_message;
  size_t open_list;
  char set[NFT_SET_MAXNAMELEN];
};

// Makes room and puts the header of the next message; NULL when there is no memory.
struct nlmsghdr *vmfence_put_message(struct vmfence_nft_batch *batch, uint16_t type, uint16_t flags);
// The message is whole.
void vmfence_finish_message(struct vmfence_nft_batch *batch, struct nlmsghdr *message);
void vmfence_put_u64(struct nlmsghdr *message, uint16_t type, uint64_t value);
int vmfence_copy_name(char *destination, size_t capacity, const char *name);

#endif
