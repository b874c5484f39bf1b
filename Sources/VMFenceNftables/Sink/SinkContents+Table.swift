import VMFenceCore

/// The table as the kernel has it, without its elements.
struct TableImage {
  var flags: UInt32 = 0
  /// The netlink port of its owner.
  var owner: UInt32?
  /// Name, hook and priority.
  var chains: [ChainSpecification] = []
  /// The comments of each chain's rules, in order.
  var rules: [String: [String]] = [:]
  var counts: [(chain: String, comment: String, count: TrafficCount)] = []
  var sets: Set<String> = []
  /// How many elements each set has, of kernels that say so (6.16 and later); with those that have ended and were not collected.
  var elementCounts: [String: Int] = [:]
  var limits: Set<String> = []

  static let ownerFlag: UInt32 = 2
  static let persistFlag: UInt32 = 4

  /// The groups whose rules are there, in their order.
  var groups: [RuleGroup] {
    var found: [RuleGroup] = []
    for chain in ["block4", "block6", "prerouting", "forward"] {
      for comment in rules[chain] ?? [] {
        guard let group = RuleGroup(chain: chain, comment: comment), !found.contains(group) else { continue }
        found.append(group)
      }
    }
    return found
  }

  /// Whether all that the skeleton has is there, and its chains have no other rules.
  func holds(_ skeleton: Skeleton) -> Bool {
    var expected: [String: [String]] = [:]
    for rule in skeleton.rules { expected[rule.chain, default: []].append(rule.comment) }
    return skeleton.chains.allSatisfy { chain in
      chains.contains(chain) && (rules[chain.name] ?? []) == (expected[chain.name] ?? [])
    } && skeleton.sets.allSatisfy { sets.contains($0.name) }
  }
}

extension SinkContents {
  /// How often a reading is begun anew when others changed the ruleset meanwhile.
  static let readAttempts = 8

  var skeleton: Skeleton { Skeleton(configuration, groups: groups) }

  var tableFlags: UInt32 { isOwned ? TableImage.ownerFlag | TableImage.persistFlag : 0 }

  // MARK: Opening

  /// Makes the table, or goes on with one that is there.
  mutating func openTable() throws(NetlinkError) {
    knownGeneration = try socket.rulesetGeneration()
    guard let image = try readTable() else { return try makeTable(keepsMeasures: false) }
    if let owner = image.owner, owner != socket.port { throw .held(owner, .bridge) }
    groups = image.groups
    // What an earlier run left: its measures are kept, whatever its table looked like.
    limits = image.limits
    if !adopt(try readElements(of: image)) { knownGeneration = nil }
    let isOrphan = image.flags == TableImage.persistFlag
    let fits = isOwned ? isOrphan : image.flags == 0
    if fits, image.holds(skeleton), Set(neededGroups).isSubset(of: groups) {
      guard isOwned else { return }
      batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(16))
      batch.addTable(flags: tableFlags, comment: Self.comment)
      return try commit()
    }
    try makeTable(keepsMeasures: true)
  }

  static let comment = "VMFence: measures that protect guests"

  /// Makes the table anew, in one transaction, empty or with the measures that stand.
  mutating func makeTable(keepsMeasures: Bool) throws(NetlinkError) {
    let groups = keepsMeasures ? neededGroups : []
    let skeleton = Skeleton(configuration, groups: groups)
    let before = try socket.rulesetGeneration()
    let isThere = try hasTable()
    batch.begin(.bridge, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
    if isThere { batch.deleteTable() }
    batch.addTable(flags: tableFlags, comment: Self.comment)
    for set in skeleton.sets { batch.add(set) }
    for chain in skeleton.chains { batch.add(chain) }
    for rule in skeleton.rules { batch.add(rule) }
    if let guards { write(guards: guards, flushes: false) }
    limits = []
    if keepsMeasures { writeStanding() }
    knownGeneration = nil
    try commit()
    knownGeneration = Self.generation(after: before)
    self.groups = groups
    cutFlows.removeAll()
    if !keepsMeasures { standing.removeAll() }
    try mendPortChains()
  }

  /// The groups without whose rules what stands would not be in force, each once.
  private var neededGroups: [RuleGroup] {
    let sets = Set(standing.map { Self.set(of: $0.key, slot: $0.value.slot) })
    return Array(Set(sets.flatMap { RuleGroup.needed(by: $0) }))
  }

  /// Writes the rules of those of these groups that are not there yet, with the chains and sets that they need.
  ///
  /// - Returns: those groups.
  mutating func write(missing wanted: some Sequence<RuleGroup>) -> [RuleGroup] {
    var new: [RuleGroup] = []
    for group in wanted where !groups.contains(group) && !new.contains(group) { new.append(group) }
    if new.isEmpty { return [] }
    let rules = new.flatMap { $0.rules(protectsHost: configuration.protectsHost) }
    let present = Skeleton.hooks(of: skeleton.rules)
    for chain in Skeleton.hooks(of: rules) where !present.contains(chain) { batch.add(chain) }
    for set in new.compactMap(\.blockSet) where !BlockSet.first.contains(set) { batch.add(set.specification) }
    for rule in rules { batch.add(rule) }
    return new
  }

  /// Writes the elements of everything that stands.
  private mutating func writeStanding() {
    let now = Self.now
    purge(at: now)
    var keys: [SetName: [FirewallMeasure.Key]] = [:]
    for (key, entry) in standing { keys[Self.set(of: key, slot: entry.slot), default: []].append(key) }
    for keys in keys.values { writeLimits(of: keys) }
    for (set, keys) in keys {
      batch.beginElements(of: set.description)
      for key in keys {
        guard let entry = standing[key] else { continue }
        writeAddition(entry.measure(key, expires: nil), timeout: entry.timeout(at: now), in: interfaces(of: key))
      }
      batch.endElements()
    }
  }

  // MARK: Reading

  private mutating func hasTable() throws(NetlinkError) -> Bool {
    do throws(NetlinkError) {
      try socket.ask(.table, family: .bridge, table: configuration.table) { _, _ in }
      return true
    } catch .refused(2, _) {
      return false
    }
  }

  /// nil when there is no such table.
  mutating func readTable() throws(NetlinkError) -> TableImage? {
    for _ in 0..<Self.readAttempts {
      do throws(NetlinkError) {
        return try readTableOnce()
      } catch .interrupted {
        continue
      } catch .refused(2, _) {
        return nil
      }
    }
    throw .interrupted
  }

  private mutating func readTableOnce() throws(NetlinkError) -> TableImage {
    var image = TableImage()
    let table = configuration.table
    (image.flags, image.owner) = try readTableFlags(.bridge)
    // Only the owner may look further: for others the kernel has no such chains, rules and sets.
    try socket.ask(.chains, family: .bridge, table: table) { (message, bytes) throws(NetlinkError) in
      if let chain = try ChainSpecification(message, bytes, table: table) { image.chains.append(chain) }
    }
    try socket.ask(.rules, family: .bridge, table: table) { (message, bytes) throws(NetlinkError) in
      let rule = try ReadRule(message, bytes)
      guard rule.table == table else { return }
      image.rules[rule.chain, default: []].append(rule.comment)
      if let count = rule.count { image.counts.append((rule.chain, rule.comment, count)) }
    }
    try readNames(.sets) { name, count in
      image.sets.insert(name)
      image.elementCounts[name] = count
    }
    try readNames(.limits) { name, _ in image.limits.insert(name) }
    return image
  }

  /// The flags of our table of this family, and the netlink port of its owner.
  mutating func readTableFlags(_ family: TableFamily) throws(NetlinkError) -> (flags: UInt32, owner: UInt32?) {
    var (flags, owner) = (UInt32(0), UInt32?.none)
    try socket.ask(.table, family: family, table: configuration.table) { (message, bytes) throws(NetlinkError) in
      try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (part) throws(NetlinkError) in
        if part.type == 2 { flags = try part.u32(bytes) }
        if part.type == 7 { owner = try part.u32(bytes) }
      }
    }
    return (flags, owner)
  }

  /// The names of the table's sets or limits. In both kinds of messages, attribute 1 is the table's name and 2 is the object's own; 20 is how many
  /// elements a set has (NFTA_SET_COUNT).
  private mutating func readNames(
    _ question: Question, _ body: (_ name: String, _ count: Int?) -> Void
  ) throws(NetlinkError) {
    let table = configuration.table
    try socket.ask(question, family: .bridge, table: table) { (message, bytes) throws(NetlinkError) in
      var names = ["", ""]
      var count: Int?
      try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (part) throws(NetlinkError) in
        if part.type == 1 || part.type == 2 { names[Int(part.type) - 1] = part.text(bytes) }
        if part.type == 20, question == .sets { count = Int(try part.u32(bytes)) }
      }
      if names[0] == table { body(names[1], count) }
    }
  }

  /// The elements of the sets that hold measures, each once.
  ///
  /// While the kernel makes a set's table larger or smaller, which it does, too, when it collects what has run out, a listing leaves some elements
  /// out and has others twice, and nothing in it says so: it is interrupted by transactions only. So the sets are listed until a listing has nothing
  /// that those before it did not have. One is enough when the kernel has counted as many as it has, each once.
  mutating func readElements(of image: TableImage) throws(NetlinkError) -> [ReadElement] {
    let sets = Self.measureSets(of: image)
    var latest = try listElements(of: sets)
    let counts = sets.compactMap { image.elementCounts[$0.description] }
    if counts.count == sets.count, latest.isDistinct, latest.elements.count == counts.reduce(0, +) {
      return latest.elements
    }
    var known: [ElementPlace: ReadElement] = [:]
    for _ in 1..<Self.readAttempts {
      // Mostly it is the same again, and this is much cheaper than looking each up.
      if try digestElements(of: sets) == latest.digest { break }
      if known.isEmpty { for element in latest.elements { known[element.place] = element } }
      let count = known.count
      latest = try listElements(of: sets)
      for element in latest.elements { known[element.place] = element }
      if known.count == count { break }
    }
    return known.isEmpty ? latest.elements : Array(known.values)
  }

  /// The sets that hold measures, of those that are there.
  static func measureSets(of image: TableImage) -> [SetName] {
    var sets: [SetName] = [.quarantine] + (0..<SetName.limitSlots).map { .limit($0) }
    sets += image.sets.compactMap { BlockSet(name: $0).map { .blocks($0) } }
    sets.removeAll { !image.sets.contains($0.description) }
    return sets
  }

  private struct Listing {
    var elements: [ReadElement] = []
    var digest = ListingDigest()
    var hashes: Set<Int> = []
    var isDistinct: Bool { hashes.count == elements.count }
  }

  private mutating func listElements(of sets: [SetName]) throws(NetlinkError) -> Listing {
    var listing = Listing()
    try list(sets) {
      listing = Listing()
    } _: { (set, message, bytes) throws(NetlinkError) in
      try ReadElement.forEach(in: message, bytes, of: set) { element in
        listing.hashes.insert(element.key.withRawSpan { listing.digest.add($0, of: set) })
        listing.elements.append(element)
      }
    }
    return listing
  }

  private mutating func digestElements(of sets: [SetName]) throws(NetlinkError) -> ListingDigest {
    var digest = ListingDigest()
    try list(sets) {
      digest = ListingDigest()
    } _: { (set, message, bytes) throws(NetlinkError) in
      try ReadElement.forEachKey(in: message, bytes) { digest.add(bytes.extracting($0.value), of: set) }
    }
    return digest
  }

  /// Calls `body` with each message of the listing of each set; `begin` before, and again when the listing has to be begun anew.
  private mutating func list(
    _ sets: [SetName], begin: () -> Void, _ body: (SetName, NetlinkMessage, RawSpan) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    for _ in 0..<Self.readAttempts {
      do throws(NetlinkError) {
        begin()
        for set in sets {
          try socket.ask(.elements, family: .bridge, table: configuration.table, set: set.description) {
            (message, bytes) throws(NetlinkError) in try body(set, message, bytes)
          }
        }
        return
      } catch .interrupted {
        continue
      }
    }
    throw .interrupted
  }
}

/// Which elements a listing had, in whatever order. Hashes with a key of this process, so nobody chooses addresses that make two listings look alike.
struct ListingDigest: Equatable {
  private var count = 0
  private var sum = 0

  /// - Returns: the key's hash.
  @discardableResult
  mutating func add(_ key: RawSpan, of set: SetName) -> Int {
    var hasher = Hasher()
    hasher.combine(set)
    // SAFETY: the hasher reads the key's bytes.
    unsafe key.withUnsafeBytes { unsafe hasher.combine(bytes: $0) }
    let hash = hasher.finalize()
    count += 1
    sum &+= hash
    return hash
  }
}

extension SinkContents.Standing {
  /// What is left of its time, in milliseconds; 0 when it has no end.
  func timeout(at now: UInt64) -> UInt64 {
    guard let deadline else { return 0 }
    return max(1, (deadline - min(now, deadline) + 999_999) / 1_000_000)
  }
}
