internal import CNftables
import VMFenceCore

/// A transaction that is being written. The corresponding C library is libnftnl, over libmnl.
@safe struct Batch: ~Copyable, @unchecked Sendable {
  // SAFETY: made by the C function, released once, in `deinit`; used by one thread at a time, since calls mutate.
  private let raw: OpaquePointer

  private init(raw: OpaquePointer) { unsafe self.raw = raw }

  // SAFETY: the pointer that this value alone has.
  deinit { unsafe vmfence_nft_batch_free(raw) }

  static func make() throws(NetlinkError) -> Batch {
    // SAFETY: takes nothing.
    guard let raw = unsafe vmfence_nft_batch_new() else { throw .socket(12, "allocate a transaction") }
    return unsafe Batch(raw: raw)
  }

  mutating func begin(_ family: TableFamily, table: String, sequence: UInt32) {
    // SAFETY: `raw` lives; the text is read during the call.
    unsafe vmfence_nft_begin(raw, family.rawValue, table, sequence)
  }

  // SAFETY: `raw` lives, here and in all functions below; texts and bytes are read during the calls only.
  var byteCount: Int { unsafe vmfence_nft_size(raw) }
  var isEmpty: Bool { unsafe vmfence_nft_count(raw) == 0 }

  /// - Returns: the number of the message that is acknowledged last; nil with errno set when it was not sent.
  func send(to descriptor: Int32, commits: Bool) -> UInt32? {
    var last: UInt32 = 0
    // SAFETY: see above; `last` is written during the call.
    return unsafe vmfence_nft_send(descriptor, raw, commits ? 1 : 0, &last) == 0 ? last : nil
  }

  // MARK: Tables, chains, sets

  mutating func addTable(flags: UInt32 = 0, comment: String) {
    // SAFETY: see above.
    unsafe vmfence_nft_add_table(raw, flags, comment)
  }

  mutating func deleteTable() {
    // SAFETY: see above.
    unsafe vmfence_nft_delete_table(raw)
  }

  /// - `device`: the interface that a base chain of the netdev family is at.
  mutating func add(_ chain: ChainSpecification, device: String? = nil) {
    // SAFETY: see above.
    guard let base = chain.base else { return unsafe vmfence_nft_add_chain(raw, chain.name, -1, 0, 0, nil) }
    unsafe vmfence_nft_add_chain(raw, chain.name, base.hook.rawValue, base.priority, 0, device)
  }

  mutating func deleteChain(named name: String) {
    // SAFETY: see above.
    unsafe vmfence_nft_delete_chain(raw, name)
  }

  mutating func add(_ set: SetSpecification) {
    let fields = set.fields.map(\.byteCount)
    let type = set.fields.reduce(UInt32(0)) { $0 << 6 | $1.nftType }
    // SAFETY: see above; `fields` has as many bytes as said.
    unsafe vmfence_nft_add_set(
      raw, set.name, vmfence_nft_set_kind(set.kind.rawValue), set.hasTimeouts ? 1 : 0, type, fields,
      UInt32(fields.count))
  }

  mutating func flush(set: String) {
    // SAFETY: see above.
    unsafe vmfence_nft_flush_set(raw, set)
  }

  // MARK: Limits

  /// A limit that is there already stays as it is.
  mutating func add(_ limit: LimitName) {
    // SAFETY: see above.
    unsafe vmfence_nft_add_limit(raw, limit.description, UInt64(limit.packetsPerSecond))
  }

  mutating func deleteLimit(named name: String) {
    // SAFETY: see above.
    unsafe vmfence_nft_delete_limit(raw, name)
  }

  // MARK: Elements

  mutating func beginElements(of set: String, deletes: Bool = false) {
    // SAFETY: see above.
    unsafe vmfence_nft_begin_elements(raw, set, deletes ? 1 : 0)
  }

  mutating func endElements() {
    // SAFETY: see above.
    unsafe vmfence_nft_end_elements(raw)
  }

  /// Writes one element of the set that was begun.
  mutating func element(
    _ key: ElementKey, timeout: UInt64 = 0, userData: [UInt8] = [], refersTo reference: ElementReference? = nil
  ) {
    var element = unsafe vmfence_nft_element()
    unsafe element.timeout_milliseconds = timeout
    let bytes = key.bytes.span
    // SAFETY: the pointers hold during the closures, and the C function copies before it returns.
    unsafe bytes.withUnsafeBytes { keyBytes in
      unsafe element.key = keyBytes.baseAddress.map { unsafe UnsafeRawPointer($0) }
      unsafe element.key_length = UInt32(key.count)
      unsafe userData.withUnsafeBytes { data in
        unsafe element.user_data = data.baseAddress
        unsafe element.user_data_length = UInt32(data.count)
        guard let reference else {
          // SAFETY: as above.
          return unsafe vmfence_nft_element(raw, &element)
        }
        // SAFETY: as above.
        unsafe reference.name.withCString { name in
          switch reference {
          case .chain: unsafe element.chain = name
          case .limit: unsafe element.limit = name
          }
          unsafe vmfence_nft_element(raw, &element)
        }
      }
    }
  }

  // MARK: Rules

  mutating func add(_ rule: RuleSpecification) {
    // SAFETY: see above.
    unsafe vmfence_nft_begin_rule(raw, rule.chain, rule.comment)
    for expression in rule.expressions { add(expression) }
    // SAFETY: see above.
    unsafe vmfence_nft_end_rule(raw)
  }

  private mutating func add(_ expression: Expression) {
    // SAFETY: see above; each array has as many bytes as said.
    switch expression {
    case .meta(let key, let register):
      unsafe vmfence_nft_meta(raw, vmfence_nft_meta(key.rawValue), register.number)
    case .payload(let base, let offset, let length, let register):
      unsafe vmfence_nft_payload(raw, vmfence_nft_base(base.rawValue), offset, length, register.number)
    case .fragmentOffset(let register): unsafe vmfence_nft_fragment_offset(raw, register.number)
    case .mask(let register, let mask):
      unsafe vmfence_nft_mask(raw, register.number, register.number, mask, UInt32(mask.count))
    // SAFETY: as above.
    case .equal(let register, let bytes):
      unsafe vmfence_nft_compare(raw, register.number, 0, bytes, UInt32(bytes.count))
    case .notEqual(let register, let bytes):
      unsafe vmfence_nft_compare(raw, register.number, 1, bytes, UInt32(bytes.count))
    case .load(let register, let bytes):
      unsafe vmfence_nft_load(raw, register.number, bytes, UInt32(bytes.count))
    // SAFETY: as above.
    case .lookup(let register, let set): unsafe vmfence_nft_lookup(raw, register.number, set, 0)
    case .lookupMissing(let register, let set): unsafe vmfence_nft_lookup(raw, register.number, set, 1)
    case .verdictMap(let register, let set): unsafe vmfence_nft_lookup_verdict(raw, register.number, set)
    case .limitMap(let register, let set): unsafe vmfence_nft_lookup_limit(raw, register.number, set)
    case .counter: unsafe vmfence_nft_counter(raw)
    case .reset: unsafe vmfence_nft_reject_with_reset(raw)
    case .verdict(let verdict): add(verdict)
    }
  }

  private mutating func add(_ verdict: RuleVerdict) {
    // SAFETY: see above.
    switch verdict {
    case .drop: unsafe vmfence_nft_verdict(raw, VMFENCE_NFT_DROP, nil)
    case .accept: unsafe vmfence_nft_verdict(raw, VMFENCE_NFT_ACCEPT, nil)
    case .return: unsafe vmfence_nft_verdict(raw, VMFENCE_NFT_RETURN, nil)
    case .jump(let chain): unsafe vmfence_nft_verdict(raw, VMFENCE_NFT_JUMP, chain)
    case .goto(let chain): unsafe vmfence_nft_verdict(raw, VMFENCE_NFT_GOTO, chain)
    }
  }
}
