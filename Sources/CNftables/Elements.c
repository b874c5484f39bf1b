#include "Batch.h"

#include <errno.h>
#include <string.h>

static void put_data(struct nlmsghdr *message, uint16_t type, const void *bytes, uint32_t length) {
  struct nlattr *data = mnl_attr_nest_start(message, type);
  mnl_attr_put(message, NFTA_DATA_VALUE, length, bytes);
  mnl_attr_nest_end(message, data);
}

static void put_u64(struct nlmsghdr *message, uint16_t type, uint64_t value) {
  mnl_attr_put_u64(message, type, __builtin_bswap64(value));
}

void vmfence_nft_begin_elements(struct vmfence_nft_batch *batch, const char *set, int deletes) {
  if (vmfence_copy_name(batch->set, sizeof batch->set, set) != 0) batch->error = ENAMETOOLONG;
  batch->deletes = deletes;
  batch->has_open_message = 0;
}

static struct nlmsghdr *open_message(struct vmfence_nft_batch *batch) {
  struct nlmsghdr *message =
    vmfence_put_message(batch, batch->deletes ? NFT_MSG_DELSETELEM : NFT_MSG_NEWSETELEM, batch->deletes ? 0 : NLM_F_CREATE);
  if (message == NULL) return NULL;
  mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_TABLE, batch->table);
  mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_SET, batch->set);
  struct nlattr *list = mnl_attr_nest_start(message, NFTA_SET_ELEM_LIST_ELEMENTS);
  batch->has_open_message = 1;
  batch->open_message = (size_t)((char *)message - batch->bytes);
  batch->open_list = (size_t)((char *)list - batch->bytes);
  return message;
}

static void put_limit(struct nlmsghdr *message, uint64_t rate) {
  uint32_t burst = rate < 5 ? 5 : rate > 0xFFFFFFFF ? 0xFFFFFFFF : (uint32_t)rate;
  struct nlattr *expression = mnl_attr_nest_start(message, NFTA_SET_ELEM_EXPR);
  mnl_attr_put_strz(message, NFTA_EXPR_NAME, "limit");
  struct nlattr *data = mnl_attr_nest_start(message, NFTA_EXPR_DATA);
  put_u64(message, NFTA_LIMIT_RATE, rate);
  put_u64(message, NFTA_LIMIT_UNIT, 1);
  mnl_attr_put_u32(message, NFTA_LIMIT_BURST, htonl(burst));
  mnl_attr_put_u32(message, NFTA_LIMIT_TYPE, htonl(NFT_LIMIT_PKTS));
  mnl_attr_put_u32(message, NFTA_LIMIT_FLAGS, htonl(NFT_LIMIT_F_INV));
  mnl_attr_nest_end(message, data);
  mnl_attr_nest_end(message, expression);
}

static void put_jump(struct nlmsghdr *message, const char *chain) {
  struct nlattr *data = mnl_attr_nest_start(message, NFTA_SET_ELEM_DATA);
  struct nlattr *verdict = mnl_attr_nest_start(message, NFTA_DATA_VERDICT);
  mnl_attr_put_u32(message, NFTA_VERDICT_CODE, htonl((uint32_t)NFT_JUMP));
  mnl_attr_put_strz(message, NFTA_VERDICT_CHAIN, chain);
  mnl_attr_nest_end(message, verdict);
  mnl_attr_nest_end(message, data);
}

void vmfence_nft_element(struct vmfence_nft_batch *batch, const struct vmfence_nft_element *element) {
  if (batch->error != 0) return;
  if (element->key_length > NFT_DATA_VALUE_MAXLEN || element->user_data_length > NFT_USERDATA_MAXLEN ||
      (element->chain != NULL && strlen(element->chain) >= NFT_CHAIN_MAXNAMELEN)) {
    batch->error = EINVAL;
    return;
  }
  struct nlmsghdr *message =
    batch->has_open_message ? (struct nlmsghdr *)(batch->bytes + batch->open_message) : open_message(batch);
  if (message == NULL) return;
  struct nlattr *item = mnl_attr_nest_start(message, NFTA_LIST_ELEM);
  put_data(message, NFTA_SET_ELEM_KEY, element->key, element->key_length);
  if (!batch->deletes) {
    if (element->timeout_milliseconds != 0) put_u64(message, NFTA_SET_ELEM_TIMEOUT, element->timeout_milliseconds);
    if (element->user_data_length != 0)
      mnl_attr_put(message, NFTA_SET_ELEM_USERDATA, element->user_data_length, element->user_data);
    if (element->chain != NULL) put_jump(message, element->chain);
    if (element->packets_per_second != 0) put_limit(message, element->packets_per_second);
  }
  mnl_attr_nest_end(message, item);
  if (message->nlmsg_len >= VMFENCE_ELEMENTS_FULL) vmfence_nft_end_elements(batch);
}

void vmfence_nft_end_elements(struct vmfence_nft_batch *batch) {
  if (!batch->has_open_message || batch->error != 0) return;
  struct nlmsghdr *message = (struct nlmsghdr *)(batch->bytes + batch->open_message);
  mnl_attr_nest_end(message, (struct nlattr *)(batch->bytes + batch->open_list));
  vmfence_finish_message(batch, message);
  batch->has_open_message = 0;
}
