#include "Batch.h"

#include <errno.h>
#include <string.h>

static void put_data(struct nlmsghdr *message, uint16_t type, const void *bytes, uint32_t length) {
  struct nlattr *data = mnl_attr_nest_start(message, type);
  mnl_attr_put(message, NFTA_DATA_VALUE, length, bytes);
  mnl_attr_nest_end(message, data);
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
      (element->chain != NULL && strlen(element->chain) >= NFT_CHAIN_MAXNAMELEN) ||
      (element->limit != NULL && strlen(element->limit) >= NFT_OBJ_MAXNAMELEN)) {
    batch->error = EINVAL;
    return;
  }
  struct nlmsghdr *message =
    batch->has_open_message ? (struct nlmsghdr *)(batch->bytes + batch->open_message) : open_message(batch);
  if (message == NULL) return;
  struct nlattr *item = mnl_attr_nest_start(message, NFTA_LIST_ELEM);
  put_data(message, NFTA_SET_ELEM_KEY, element->key, element->key_length);
  if (!batch->deletes) {
    if (element->timeout_milliseconds != 0) vmfence_put_u64(message, NFTA_SET_ELEM_TIMEOUT, element->timeout_milliseconds);
    if (element->user_data_length != 0)
      mnl_attr_put(message, NFTA_SET_ELEM_USERDATA, element->user_data_length, element->user_data);
    if (element->chain != NULL) put_jump(message, element->chain);
    if (element->limit != NULL) mnl_attr_put_strz(message, NFTA_SET_ELEM_OBJREF, element->limit);
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
