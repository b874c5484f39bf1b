// What of libnftnl and libmnl the packet filter needs: transactions are written here, answers are parsed in Swift. The libraries'
// headers need kernel headers, which do not go along with other C modules; so none of them is included here.
//
// Nothing here holds state besides the objects that are handed out. A transaction is used by one thread at a time.
#ifndef VMFENCE_CNFTABLES_H
#define VMFENCE_CNFTABLES_H

#include <stddef.h>
#include <stdint.h>

// MARK: The netlink socket

// A NETLINK_NETFILTER socket, bound, close-on-exec, with send and receive buffers of `buffer` bytes as far as the kernel allows.
// With `listens`, it is subscribed to the changes of nf_tables. Returns the descriptor, or -1 with errno.
int vmfence_nft_socket(int listens, int buffer);
// The socket's port, which the kernel names as the author of changes; 0 when it cannot be told.
uint32_t vmfence_nft_port(int fd);
// Lets the kernel drop what `author` changed instead of queueing it (a socket filter). 0, or -1 with errno.
int vmfence_nft_ignore(int fd, uint32_t author);
// Joins or leaves those who are told of changes of nf_tables. 0, or -1 with errno.
int vmfence_nft_listen(int fd, int listens);
// Makes room for messages of `bytes` (SO_SNDBUFFORCE needs CAP_NET_ADMIN in the first user namespace).
int vmfence_nft_send_buffer(int fd, size_t bytes);

// Whether CAP_NET_ADMIN is among the calling thread's effective capabilities (capget(2)): 1 or 0.
int vmfence_nft_may_administer(void);

// The number of an interface in the socket's own network namespace (SIOCGIFINDEX, netdevice(7)); 0 when there is none.
int vmfence_nft_interface_index(int fd, const char *name);

// MARK: A transaction

// Messages that take effect together or not at all. What fails while it is written is remembered: `vmfence_nft_send` returns it.
struct vmfence_nft_batch;
struct vmfence_nft_batch *vmfence_nft_batch_new(void);
void vmfence_nft_batch_free(struct vmfence_nft_batch *batch);
// Begins anew. `family` is an NFPROTO number; `sequence` is the number of the first message.
void vmfence_nft_begin(struct vmfence_nft_batch *batch, uint8_t family, const char *table, uint32_t sequence);
// Ends it, and sends it with one system call. Without `commits` the kernel checks everything and changes nothing. `last` gets the number
// of the message whose acknowledgement comes last. 0, or -1 with errno.
int vmfence_nft_send(int fd, struct vmfence_nft_batch *batch, int commits, uint32_t *last);
size_t vmfence_nft_size(const struct vmfence_nft_batch *batch);
// How many messages it has, without its beginning and end.
uint32_t vmfence_nft_count(const struct vmfence_nft_batch *batch);

void vmfence_nft_add_table(struct vmfence_nft_batch *batch, uint32_t flags, const char *comment);
void vmfence_nft_delete_table(struct vmfence_nft_batch *batch);

// `hook` is -1 for a chain that is only jumped to. `device` is NULL but for the netdev family.
void vmfence_nft_add_chain(
  struct vmfence_nft_batch *batch, const char *name, int hook, int priority, int drops, const char *device);
// With its rules. Fails when it is not there (ENOENT).
void vmfence_nft_delete_chain(struct vmfence_nft_batch *batch, const char *name);

// What a set holds besides its keys.
enum vmfence_nft_set_kind {
  VMFENCE_NFT_SET_PLAIN = 0,
  // Each element counts packets and bytes.
  VMFENCE_NFT_SET_COUNTED = 1,
  // Each element has a verdict.
  VMFENCE_NFT_SET_VERDICTS = 2,
  // Each element names a limit of the table.
  VMFENCE_NFT_SET_LIMITS = 3,
};
// `fields`: the lengths of the parts of a key, in bytes, without padding; `key_type`: nft(8)'s numbers of their types, six bits each.
void vmfence_nft_add_set(
  struct vmfence_nft_batch *batch, const char *name, enum vmfence_nft_set_kind kind, int has_timeouts,
  uint32_t key_type, const uint8_t *fields, uint32_t field_count);
// Removes all elements.
void vmfence_nft_flush_set(struct vmfence_nft_batch *batch, const char *name);

// MARK: Limits: objects of the table, which elements of several sets and keys can share

// What exceeds this many packets a second matches. Adding one that is there changes nothing.
void vmfence_nft_add_limit(struct vmfence_nft_batch *batch, const char *name, uint64_t packets_per_second);
// Fails while an element names it (EBUSY).
void vmfence_nft_delete_limit(struct vmfence_nft_batch *batch, const char *name);

// MARK: Elements, gathered into messages of less than 64 KiB

struct vmfence_nft_element {
  const void *key;
  uint32_t key_length;
  // 0: no end.
  uint64_t timeout_milliseconds;
  const void *user_data;
  uint32_t user_data_length;
  // For a set with verdicts: the chain to jump to.
  const char *chain;
  // For a set with limits: the name of the limit.
  const char *limit;
};
void vmfence_nft_begin_elements(struct vmfence_nft_batch *batch, const char *set, int deletes);
void vmfence_nft_element(struct vmfence_nft_batch *batch, const struct vmfence_nft_element *element);
void vmfence_nft_end_elements(struct vmfence_nft_batch *batch);

// MARK: Rules: begin, expressions in the order in which the kernel runs them, end

void vmfence_nft_begin_rule(struct vmfence_nft_batch *batch, const char *chain, const char *comment);
void vmfence_nft_end_rule(struct vmfence_nft_batch *batch);

enum vmfence_nft_meta {
  VMFENCE_NFT_META_PROTOCOL = 0,
  VMFENCE_NFT_META_IIFNAME = 1,
  VMFENCE_NFT_META_OIFNAME = 2,
  VMFENCE_NFT_META_L4PROTO = 3,
  // The bridge's name, where the kernel has it (NFT_BRIDGE_META).
  VMFENCE_NFT_META_BRIDGE = 4,
};
void vmfence_nft_meta(struct vmfence_nft_batch *batch, enum vmfence_nft_meta key, uint32_t destination);

enum vmfence_nft_base { VMFENCE_NFT_LINK = 0, VMFENCE_NFT_NETWORK = 1, VMFENCE_NFT_TRANSPORT = 2 };
void vmfence_nft_payload(
  struct vmfence_nft_batch *batch, enum vmfence_nft_base base, uint32_t offset, uint32_t length, uint32_t destination);
// The two bytes of an IPv6 fragment header that have its offset, in network order; goes on only when there is such a header.
void vmfence_nft_fragment_offset(struct vmfence_nft_batch *batch, uint32_t destination);
void vmfence_nft_mask(
  struct vmfence_nft_batch *batch, uint32_t source, uint32_t destination, const void *mask, uint32_t length);
void vmfence_nft_compare(
  struct vmfence_nft_batch *batch, uint32_t source, int not_equal, const void *bytes, uint32_t length);
void vmfence_nft_load(struct vmfence_nft_batch *batch, uint32_t destination, const void *bytes, uint32_t length);
// With `inverted`, goes on when the key is not in the set.
void vmfence_nft_lookup(struct vmfence_nft_batch *batch, uint32_t source, const char *set, int inverted);
// Looks up a verdict, and does it.
void vmfence_nft_lookup_verdict(struct vmfence_nft_batch *batch, uint32_t source, const char *set);
void vmfence_nft_counter(struct vmfence_nft_batch *batch);

enum vmfence_nft_verdict {
  VMFENCE_NFT_DROP = 0,
  VMFENCE_NFT_ACCEPT = 1,
  VMFENCE_NFT_RETURN = 2,
  VMFENCE_NFT_JUMP = 3,
  VMFENCE_NFT_GOTO = 4,
};
void vmfence_nft_verdict(struct vmfence_nft_batch *batch, enum vmfence_nft_verdict verdict, const char *chain);
// Looks up a limit, and goes on when it is exceeded.
void vmfence_nft_lookup_limit(struct vmfence_nft_batch *batch, uint32_t source, const char *set);
// A TCP reset to the sender.
void vmfence_nft_reject_with_reset(struct vmfence_nft_batch *batch);

// MARK: Questions: a transaction's messages without its begin and end

enum vmfence_nft_question {
  VMFENCE_NFT_TABLE = 0,
  VMFENCE_NFT_CHAINS = 1,
  VMFENCE_NFT_RULES = 2,
  VMFENCE_NFT_SETS = 3,
  VMFENCE_NFT_ELEMENTS = 4,
  VMFENCE_NFT_LIMITS = 5,
  // The number of the ruleset's last change, whoever made it; `table` does not matter.
  VMFENCE_NFT_GENERATION = 6,
};
// Asks for everything of the table; `set` only for elements. 0, or -1 with errno.
int vmfence_nft_ask(
  int fd, uint8_t family, const char *table, enum vmfence_nft_question question, const char *set, uint32_t sequence);

#endif
