#include "Batch.h"

#include <errno.h>
#include <string.h>

#include <libnftnl/udata.h>

void vmfence_nft_begin_rule(struct vmfence_nft_batch *batch, const char *chain, const char *comment) {
  if (batch->rule != NULL) nftnl_rule_free(batch->rule);
  batch->rule = nftnl_rule_alloc();
  struct nftnl_udata_buf *data = nftnl_udata_buf_alloc(NFT_USERDATA_MAXLEN);
  if (batch->rule == NULL || data == NULL) {
    batch->error = ENOMEM;
  } else {
    nftnl_rule_set_str(batch->rule, NFTNL_RULE_TABLE, batch->table);
    nftnl_rule_set_str(batch->rule, NFTNL_RULE_CHAIN, chain);
    nftnl_rule_set_u32(batch->rule, NFTNL_RULE_FAMILY, batch->family);
    nftnl_udata_put_strz(data, NFTNL_UDATA_RULE_COMMENT, comment);
    nftnl_rule_set_data(batch->rule, NFTNL_RULE_USERDATA, nftnl_udata_buf_data(data), nftnl_udata_buf_len(data));
  }
  if (data != NULL) nftnl_udata_buf_free(data);
}

void vmfence_nft_end_rule(struct vmfence_nft_batch *batch) {
  if (batch->rule == NULL || batch->error != 0) return;
  struct nlmsghdr *message = vmfence_put_message(batch, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
  if (message == NULL) return;
  nftnl_rule_nlmsg_build_payload(message, batch->rule);
  vmfence_finish_message(batch, message);
  nftnl_rule_free(batch->rule);
  batch->rule = NULL;
}

// The next expression of the rule that is being written; NULL when there is none or no memory.
static struct nftnl_expr *append(struct vmfence_nft_batch *batch, const char *name) {
  if (batch->rule == NULL || batch->error != 0) return NULL;
  struct nftnl_expr *expression = nftnl_expr_alloc(name);
  if (expression == NULL) {
    batch->error = ENOMEM;
    return NULL;
  }
  nftnl_rule_add_expr(batch->rule, expression);
  return expression;
}

void vmfence_nft_meta(struct vmfence_nft_batch *batch, enum vmfence_nft_meta key, uint32_t destination) {
  static const uint32_t keys[] = {
    NFT_META_PROTOCOL, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_L4PROTO, NFT_META_BRI_IIFNAME,
  };
  struct nftnl_expr *expression = append(batch, "meta");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_META_KEY, keys[key]);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_META_DREG, destination);
}

void vmfence_nft_payload(
  struct vmfence_nft_batch *batch, enum vmfence_nft_base base, uint32_t offset, uint32_t length, uint32_t destination) {
  static const uint32_t bases[] = {
    NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER,
  };
  struct nftnl_expr *expression = append(batch, "payload");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_PAYLOAD_BASE, bases[base]);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_PAYLOAD_OFFSET, offset);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_PAYLOAD_LEN, length);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_PAYLOAD_DREG, destination);
}

void vmfence_nft_fragment_offset(struct vmfence_nft_batch *batch, uint32_t destination) {
  struct nftnl_expr *expression = append(batch, "exthdr");
  if (expression == NULL) return;
  // RFC 8200 section 4.5: the fragment header's number is 44, and bytes 2 and 3 of it are the offset, with flags in its last three bits.
  nftnl_expr_set_u8(expression, NFTNL_EXPR_EXTHDR_TYPE, 44);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_EXTHDR_OFFSET, 2);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_EXTHDR_LEN, 2);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_EXTHDR_OP, NFT_EXTHDR_OP_IPV6);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_EXTHDR_DREG, destination);
}

void vmfence_nft_mask(
  struct vmfence_nft_batch *batch, uint32_t source, uint32_t destination, const void *mask, uint32_t length) {
  static const uint8_t zeros[16];
  struct nftnl_expr *expression = length <= sizeof zeros ? append(batch, "bitwise") : NULL;
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_BITWISE_SREG, source);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_BITWISE_DREG, destination);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_BITWISE_LEN, length);
  nftnl_expr_set(expression, NFTNL_EXPR_BITWISE_MASK, mask, length);
  nftnl_expr_set(expression, NFTNL_EXPR_BITWISE_XOR, zeros, length);
}

void vmfence_nft_compare(
  struct vmfence_nft_batch *batch, uint32_t source, int not_equal, const void *bytes, uint32_t length) {
  struct nftnl_expr *expression = append(batch, "cmp");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_CMP_SREG, source);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_CMP_OP, not_equal ? NFT_CMP_NEQ : NFT_CMP_EQ);
  nftnl_expr_set(expression, NFTNL_EXPR_CMP_DATA, bytes, length);
}

void vmfence_nft_load(struct vmfence_nft_batch *batch, uint32_t destination, const void *bytes, uint32_t length) {
  struct nftnl_expr *expression = append(batch, "immediate");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_IMM_DREG, destination);
  nftnl_expr_set(expression, NFTNL_EXPR_IMM_DATA, bytes, length);
}

void vmfence_nft_lookup(struct vmfence_nft_batch *batch, uint32_t source, const char *set, int inverted) {
  struct nftnl_expr *expression = append(batch, "lookup");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_LOOKUP_SREG, source);
  nftnl_expr_set_str(expression, NFTNL_EXPR_LOOKUP_SET, set);
  if (inverted) nftnl_expr_set_u32(expression, NFTNL_EXPR_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
}

void vmfence_nft_lookup_verdict(struct vmfence_nft_batch *batch, uint32_t source, const char *set) {
  struct nftnl_expr *expression = append(batch, "lookup");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_LOOKUP_SREG, source);
  nftnl_expr_set_str(expression, NFTNL_EXPR_LOOKUP_SET, set);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_LOOKUP_DREG, NFT_REG_VERDICT);
}

void vmfence_nft_lookup_limit(struct vmfence_nft_batch *batch, uint32_t source, const char *set) {
  struct nftnl_expr *expression = append(batch, "objref");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_OBJREF_SET_SREG, source);
  nftnl_expr_set_str(expression, NFTNL_EXPR_OBJREF_SET_NAME, set);
}

void vmfence_nft_counter(struct vmfence_nft_batch *batch) { append(batch, "counter"); }

void vmfence_nft_verdict(struct vmfence_nft_batch *batch, enum vmfence_nft_verdict verdict, const char *chain) {
  static const int codes[] = {NF_DROP, NF_ACCEPT, NFT_RETURN, NFT_JUMP, NFT_GOTO};
  struct nftnl_expr *expression = append(batch, "immediate");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_IMM_DREG, NFT_REG_VERDICT);
  nftnl_expr_set_u32(expression, NFTNL_EXPR_IMM_VERDICT, (uint32_t)codes[verdict]);
  if (chain != NULL) nftnl_expr_set_str(expression, NFTNL_EXPR_IMM_CHAIN, chain);
}

void vmfence_nft_reject_with_reset(struct vmfence_nft_batch *batch) {
  struct nftnl_expr *expression = append(batch, "reject");
  if (expression == NULL) return;
  nftnl_expr_set_u32(expression, NFTNL_EXPR_REJECT_TYPE, NFT_REJECT_TCP_RST);
  nftnl_expr_set_u8(expression, NFTNL_EXPR_REJECT_CODE, 0);
}
