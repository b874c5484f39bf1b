#define _GNU_SOURCE
#include "Batch.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <libnftnl/udata.h>

// MARK: The socket

int vmfence_nft_socket(int listens, int buffer) {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
  if (fd < 0) return -1;
  struct sockaddr_nl address = {.nl_family = AF_NETLINK};
  int on = 1;
  if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
      (listens && vmfence_nft_listen(fd, 1) != 0)) {
    int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  // Both are improvements: short errors, and errors in words.
  setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) != 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
  return fd;
}

uint32_t vmfence_nft_port(int fd) {
  struct sockaddr_nl address = {0};
  socklen_t length = sizeof address;
  if (getsockname(fd, (struct sockaddr *)&address, &length) != 0) return 0;
  return address.nl_pid;
}

int vmfence_nft_ignore(int fd, uint32_t author) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct nlmsghdr, nlmsg_pid)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(author), 0, 1),
    BPF_STMT(BPF_RET | BPF_K, 0),
    BPF_STMT(BPF_RET | BPF_K, 0xFFFFFFFF),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

int vmfence_nft_listen(int fd, int listens) {
  int group = NFNLGRP_NFTABLES;
  return setsockopt(
    fd, SOL_NETLINK, listens ? NETLINK_ADD_MEMBERSHIP : NETLINK_DROP_MEMBERSHIP, &group, sizeof group);
}

int vmfence_nft_send_buffer(int fd, size_t bytes) {
  // The kernel doubles what is asked for, and keeps books about the buffer's own needs in it.
  int size = bytes > (size_t)(1 << 29) ? 1 << 29 : (int)bytes;
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) == 0) return 0;
  return setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

int vmfence_nft_may_administer(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {0};
  if (syscall(SYS_capget, &header, sets) != 0) return 0;
  return (sets[0].effective >> CAP_NET_ADMIN) & 1;
}

int vmfence_nft_interface_index(int fd, const char *name) {
  struct ifreq request = {0};
  size_t length = strlen(name);
  if (length == 0 || length >= sizeof request.ifr_name) return 0;
  memcpy(request.ifr_name, name, length);
  return ioctl(fd, SIOCGIFINDEX, &request) == 0 ? request.ifr_ifindex : 0;
}

// MARK: The transaction

struct vmfence_nft_batch *vmfence_nft_batch_new(void) { return calloc(1, sizeof(struct vmfence_nft_batch)); }

void vmfence_nft_batch_free(struct vmfence_nft_batch *batch) {
  if (batch == NULL) return;
  if (batch->rule != NULL) nftnl_rule_free(batch->rule);
  free(batch->bytes);
  free(batch);
}

void vmfence_put_u64(struct nlmsghdr *message, uint16_t type, uint64_t value) {
  mnl_attr_put_u64(message, type, __builtin_bswap64(value));
}

int vmfence_copy_name(char *destination, size_t capacity, const char *name) {
  size_t length = strlen(name);
  if (length == 0 || length >= capacity) return -1;
  memcpy(destination, name, length + 1);
  return 0;
}

static int reserve(struct vmfence_nft_batch *batch, size_t room) {
  if (batch->error != 0) return -1;
  if (batch->capacity - batch->size >= room) return 0;
  size_t capacity = batch->capacity == 0 ? 4 * VMFENCE_MESSAGE_ROOM : batch->capacity * 2;
  while (capacity - batch->size < room) capacity *= 2;
  char *bytes = realloc(batch->bytes, capacity);
  if (bytes == NULL) {
    batch->error = ENOMEM;
    return -1;
  }
  batch->bytes = bytes;
  batch->capacity = capacity;
  return 0;
}

static struct nlmsghdr *put_header(struct vmfence_nft_batch *batch, uint16_t type, uint16_t flags, int is_frame) {
  if (reserve(batch, VMFENCE_MESSAGE_ROOM) != 0) return NULL;
  struct nlmsghdr *message = mnl_nlmsg_put_header(batch->bytes + batch->size);
  message->nlmsg_type = is_frame ? type : (uint16_t)((NFNL_SUBSYS_NFTABLES << 8) | type);
  message->nlmsg_flags = NLM_F_REQUEST | flags;
  message->nlmsg_seq = batch->sequence++;
  struct nfgenmsg *general = mnl_nlmsg_put_extra_header(message, sizeof *general);
  general->nfgen_family = is_frame ? AF_UNSPEC : batch->family;
  general->version = NFNETLINK_V0;
  general->res_id = is_frame ? htons(NFNL_SUBSYS_NFTABLES) : 0;
  return message;
}

struct nlmsghdr *vmfence_put_message(struct vmfence_nft_batch *batch, uint16_t type, uint16_t flags) {
  struct nlmsghdr *message = put_header(batch, type, flags, 0);
  if (message != NULL) batch->last = batch->size;
  return message;
}

void vmfence_finish_message(struct vmfence_nft_batch *batch, struct nlmsghdr *message) {
  batch->size += MNL_ALIGN(message->nlmsg_len);
  batch->count++;
}

void vmfence_nft_begin(struct vmfence_nft_batch *batch, uint8_t family, const char *table, uint32_t sequence) {
  if (batch->rule != NULL) nftnl_rule_free(batch->rule);
  batch->rule = NULL;
  batch->size = 0;
  batch->error = 0;
  batch->family = family;
  batch->sequence = sequence;
  batch->count = 0;
  batch->has_open_message = 0;
  // What one large transaction needed is not kept for ever.
  if (batch->capacity > 64 * VMFENCE_MESSAGE_ROOM) {
    free(batch->bytes);
    batch->bytes = NULL;
    batch->capacity = 0;
  }
  if (vmfence_copy_name(batch->table, sizeof batch->table, table) != 0) batch->error = ENAMETOOLONG;
  struct nlmsghdr *message = put_header(batch, NFNL_MSG_BATCH_BEGIN, 0, 1);
  if (message != NULL) batch->size += MNL_ALIGN(message->nlmsg_len);
}

int vmfence_nft_send(int fd, struct vmfence_nft_batch *batch, int commits, uint32_t *last) {
  if (batch->error == 0 && batch->count == 0) batch->error = EINVAL;
  if (batch->error != 0) {
    errno = batch->error;
    return -1;
  }
  struct nlmsghdr *message = (struct nlmsghdr *)(batch->bytes + batch->last);
  message->nlmsg_flags |= NLM_F_ACK;
  *last = message->nlmsg_seq;
  if (commits) {
    message = put_header(batch, NFNL_MSG_BATCH_END, 0, 1);
    if (message == NULL) {
      errno = batch->error;
      return -1;
    }
    batch->size += MNL_ALIGN(message->nlmsg_len);
  }
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  ssize_t sent;
  do {
    sent = sendto(fd, batch->bytes, batch->size, 0, (struct sockaddr *)&kernel, sizeof kernel);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return -1;
  if ((size_t)sent != batch->size) {
    errno = EMSGSIZE;
    return -1;
  }
  return 0;
}

size_t vmfence_nft_size(const struct vmfence_nft_batch *batch) { return batch->size; }
uint32_t vmfence_nft_count(const struct vmfence_nft_batch *batch) { return batch->count; }

// MARK: Tables, chains, sets

void vmfence_nft_add_table(struct vmfence_nft_batch *batch, uint32_t flags, const char *comment) {
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_NEWTABLE, NLM_F_CREATE);
  if (message == NULL) return;
  mnl_attr_put_strz(message, NFTA_TABLE_NAME, batch->table);
  mnl_attr_put_u32(message, NFTA_TABLE_FLAGS, htonl(flags));
  struct nftnl_udata_buf *data = nftnl_udata_buf_alloc(NFT_USERDATA_MAXLEN);
  if (data == NULL) {
    batch->error = ENOMEM;
    return;
  }
  nftnl_udata_put_strz(data, NFTNL_UDATA_TABLE_COMMENT, comment);
  mnl_attr_put(message, NFTA_TABLE_USERDATA, nftnl_udata_buf_len(data), nftnl_udata_buf_data(data));
  nftnl_udata_buf_free(data);
  vmfence_finish_message(batch, message);
}

void vmfence_nft_delete_table(struct vmfence_nft_batch *batch) {
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_DELTABLE, 0);
  if (message == NULL) return;
  mnl_attr_put_strz(message, NFTA_TABLE_NAME, batch->table);
  vmfence_finish_message(batch, message);
}

void vmfence_nft_add_chain(
  struct vmfence_nft_batch *batch, const char *name, int hook, int priority, int drops, const char *device) {
  struct nftnl_chain *chain = nftnl_chain_alloc();
  if (chain == NULL) {
    batch->error = ENOMEM;
    return;
  }
  nftnl_chain_set_str(chain, NFTNL_CHAIN_TABLE, batch->table);
  nftnl_chain_set_str(chain, NFTNL_CHAIN_NAME, name);
  if (hook >= 0) {
    nftnl_chain_set_u32(chain, NFTNL_CHAIN_HOOKNUM, (uint32_t)hook);
    nftnl_chain_set_s32(chain, NFTNL_CHAIN_PRIO, priority);
    nftnl_chain_set_str(chain, NFTNL_CHAIN_TYPE, "filter");
    nftnl_chain_set_u32(chain, NFTNL_CHAIN_POLICY, drops ? NF_DROP : NF_ACCEPT);
    if (device != NULL) nftnl_chain_set_str(chain, NFTNL_CHAIN_DEV, device);
  }
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_NEWCHAIN, NLM_F_CREATE);
  if (message != NULL) {
    nftnl_chain_nlmsg_build_payload(message, chain);
    vmfence_finish_message(batch, message);
  }
  nftnl_chain_free(chain);
}

void vmfence_nft_delete_chain(struct vmfence_nft_batch *batch, const char *name) {
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_DELCHAIN, 0);
  if (message == NULL) return;
  mnl_attr_put_strz(message, NFTA_CHAIN_TABLE, batch->table);
  mnl_attr_put_strz(message, NFTA_CHAIN_NAME, name);
  vmfence_finish_message(batch, message);
}

void vmfence_nft_add_set(
  struct vmfence_nft_batch *batch, const char *name, enum vmfence_nft_set_kind kind, int has_timeouts,
  uint32_t key_type, const uint8_t *fields, uint32_t field_count) {
  struct nftnl_set *set = nftnl_set_alloc();
  if (set == NULL) {
    batch->error = ENOMEM;
    return;
  }
  uint32_t flags = has_timeouts ? NFT_SET_TIMEOUT : 0;
  uint32_t length = 0;
  for (uint32_t index = 0; index < field_count; index++) length += (fields[index] + 3u) & ~3u;
  if (field_count == 1) length = fields[0];
  nftnl_set_set_str(set, NFTNL_SET_TABLE, batch->table);
  nftnl_set_set_str(set, NFTNL_SET_NAME, name);
  nftnl_set_set_u32(set, NFTNL_SET_FAMILY, batch->family);
  nftnl_set_set_u32(set, NFTNL_SET_ID, batch->count + 1);
  nftnl_set_set_u32(set, NFTNL_SET_KEY_TYPE, key_type);
  nftnl_set_set_u32(set, NFTNL_SET_KEY_LEN, length);
  if (field_count > 1) {
    flags |= NFT_SET_CONCAT;
    nftnl_set_set_data(set, NFTNL_SET_DESC_CONCAT, fields, field_count);
  }
  if (kind == VMFENCE_NFT_SET_VERDICTS) {
    flags |= NFT_SET_MAP;
    nftnl_set_set_u32(set, NFTNL_SET_DATA_TYPE, NFT_DATA_VERDICT);
    nftnl_set_set_u32(set, NFTNL_SET_DATA_LEN, 0);
  } else if (kind == VMFENCE_NFT_SET_LIMITS) {
    flags |= NFT_SET_OBJECT;
    nftnl_set_set_u32(set, NFTNL_SET_OBJ_TYPE, NFT_OBJECT_LIMIT);
  } else if (kind == VMFENCE_NFT_SET_COUNTED) {
    struct nftnl_expr *expression = nftnl_expr_alloc("counter");
    if (expression == NULL) batch->error = ENOMEM;
    else nftnl_set_add_expr(set, expression);
  }
  nftnl_set_set_u32(set, NFTNL_SET_FLAGS, flags);
  // For nft(8) only, which takes names of interfaces (its type 41) to be in the machine's own order, and addresses in the network's. 1 is its BYTEORDER_HOST_ENDIAN.
  struct nftnl_udata_buf *data = nftnl_udata_buf_alloc(NFT_USERDATA_MAXLEN);
  if (data != NULL) {
    if (key_type == 41) nftnl_udata_put_u32(data, NFTNL_UDATA_SET_KEYBYTEORDER, 1);
    if (nftnl_udata_buf_len(data) != 0)
      nftnl_set_set_data(set, NFTNL_SET_USERDATA, nftnl_udata_buf_data(data), nftnl_udata_buf_len(data));
    nftnl_udata_buf_free(data);
  }
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_NEWSET, NLM_F_CREATE);
  if (message != NULL) {
    nftnl_set_nlmsg_build_payload(message, set);
    vmfence_finish_message(batch, message);
  }
  nftnl_set_free(set);
}

void vmfence_nft_flush_set(struct vmfence_nft_batch *batch, const char *name) {
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_DELSETELEM, 0);
  if (message == NULL) return;
  mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_TABLE, batch->table);
  mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_SET, name);
  vmfence_finish_message(batch, message);
}

// MARK: Limits

static struct nlmsghdr *put_object(struct vmfence_nft_batch *batch, uint16_t type, uint16_t flags, const char *name) {
  if (strlen(name) >= NFT_OBJ_MAXNAMELEN) batch->error = ENAMETOOLONG;
  struct nlmsghdr *message = vmfence_put_message(batch, type, flags);
  if (message == NULL) return NULL;
  mnl_attr_put_strz(message, NFTA_OBJ_TABLE, batch->table);
  mnl_attr_put_strz(message, NFTA_OBJ_NAME, name);
  mnl_attr_put_u32(message, NFTA_OBJ_TYPE, htonl(NFT_OBJECT_LIMIT));
  return message;
}

void vmfence_nft_add_limit(struct vmfence_nft_batch *batch, const char *name, uint64_t rate) {
  struct nlmsghdr *message = put_object(batch, NFT_MSG_NEWOBJ, NLM_F_CREATE, name);
  if (message == NULL) return;
  uint32_t burst = rate < 5 ? 5 : rate > 0xFFFFFFFF ? 0xFFFFFFFF : (uint32_t)rate;
  struct nlattr *data = mnl_attr_nest_start(message, NFTA_OBJ_DATA);
  vmfence_put_u64(message, NFTA_LIMIT_RATE, rate);
  vmfence_put_u64(message, NFTA_LIMIT_UNIT, 1);
  mnl_attr_put_u32(message, NFTA_LIMIT_BURST, htonl(burst));
  mnl_attr_put_u32(message, NFTA_LIMIT_TYPE, htonl(NFT_LIMIT_PKTS));
  mnl_attr_put_u32(message, NFTA_LIMIT_FLAGS, htonl(NFT_LIMIT_F_INV));
  mnl_attr_nest_end(message, data);
  vmfence_finish_message(batch, message);
}

void vmfence_nft_delete_limit(struct vmfence_nft_batch *batch, const char *name) {
  struct nlmsghdr *message = put_object(batch, NFT_MSG_DELOBJ, 0, name);
  if (message != NULL) vmfence_finish_message(batch, message);
}

// MARK: Questions

int vmfence_nft_ask(
  int fd, uint8_t family, const char *table, enum vmfence_nft_question question, const char *set, uint32_t sequence) {
  static const uint16_t types[] = {
    NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM,
    NFT_MSG_GETOBJ, NFT_MSG_GETGEN,
  };
  char bytes[1024];
  if (strlen(table) >= NFT_TABLE_MAXNAMELEN || (set != NULL && strlen(set) >= NFT_SET_MAXNAMELEN)) {
    errno = ENAMETOOLONG;
    return -1;
  }
  struct nlmsghdr *message = mnl_nlmsg_put_header(bytes);
  message->nlmsg_type = (uint16_t)((NFNL_SUBSYS_NFTABLES << 8) | types[question]);
  message->nlmsg_flags = NLM_F_REQUEST | (question == VMFENCE_NFT_TABLE || question == VMFENCE_NFT_GENERATION ? 0 : NLM_F_DUMP);
  message->nlmsg_seq = sequence;
  struct nfgenmsg *general = mnl_nlmsg_put_extra_header(message, sizeof *general);
  *general = (struct nfgenmsg){.nfgen_family = family, .version = NFNETLINK_V0};
  // The table's name is attribute 1 of every kind of message; the set's is 2 of those about elements. The kernel does not filter
  // chains by table.
  if (question != VMFENCE_NFT_CHAINS && question != VMFENCE_NFT_GENERATION) mnl_attr_put_strz(message, 1, table);
  if (set != NULL) mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_SET, set);
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  ssize_t sent;
  do {
    sent = sendto(fd, bytes, message->nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? -1 : 0;
}
