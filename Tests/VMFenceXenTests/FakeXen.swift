import Glibc
import Synchronization
import VMFenceCore
import VMFenceXen

/// A host with Xen, by its two interfaces: a list of domains, and a tree of entries with watches. What real ones do is tried in Tests/Rig.
final class FakeXen: XenHypervisor, XenStoreAccess {
  fileprivate struct Contents {
    var domains: [DomainID: XenDomain] = [:]
    var pauses: [DomainID: Int] = [:]
    var entries: [String: String] = [:]
    var watches: [String] = []
    var events: [String] = []
    var isStoreDown = false
    var isStoreSilent = false
    var isHypervisorDown = false
    var delay = Duration.zero
    var losesHints = false
    var connections = 0
    /// Questions that xenstored was asked.
    var questions = 0
    /// Domains that do what `control/shutdown` says.
    var obedient: Set<DomainID> = []
  }

  private let contents = Mutex(Contents())
  let descriptor: CInt = -1

  // MARK: What happens on the host

  func put(_ domain: XenDomain) {
    contents.withLock { contents in
      contents.domains[domain.incarnation.domainID] = domain
      if !contents.losesHints { contents.events.append("@introduceDomain") }
    }
  }

  func change(_ number: DomainID, _ body: (inout XenDomain) -> Void) {
    contents.withLock { contents in
      guard var domain = contents.domains[number] else { return }
      body(&domain)
      contents.domains[number] = domain
    }
  }

  /// Takes a domain and its entries away.
  func remove(_ number: DomainID) {
    contents.withLock { contents in
      contents.domains[number] = nil
      contents.pauses[number] = nil
    }
    for path in ["/local/domain/\(number)"]
      + ["vif", "vbd", "qdisk"].map({ "/local/domain/0/backend/\($0)/\(number)" })
    {
      removeEntries(below: path)
    }
  }

  func set(_ path: String, _ value: String) {
    contents.withLock { contents in
      contents.entries[path] = value
      contents.notify(path)
    }
  }

  func removeEntries(below path: String) {
    contents.withLock { contents in
      for entry in contents.entries.keys where entry == path || entry.hasPrefix(path + "/") {
        contents.entries[entry] = nil
        contents.notify(entry)
      }
    }
  }

  /// A vif as libxl writes it.
  func addInterface(_ number: DomainID, device: Int, mac: String, _ more: [String: String] = [:]) {
    let path = "/local/domain/0/backend/vif/\(number)/\(device)"
    let usual = ["mac": mac, "bridge": "xenbr0", "handle": "\(device)", "state": "4"]
    for (key, value) in usual.merging(more, uniquingKeysWith: { $1 }) { set("\(path)/\(key)", value) }
  }

  var isStoreDown: Bool {
    get { contents.withLock { $0.isStoreDown } }
    set {
      contents.withLock { contents in
        contents.isStoreDown = newValue
        contents.watches = []
        contents.events = []
      }
    }
  }

  /// xenstored is there, and answers nothing as long as this is so.
  var isStoreSilent: Bool {
    get { contents.withLock { $0.isStoreSilent } }
    set { contents.withLock { $0.isStoreSilent = newValue } }
  }

  var isHypervisorDown: Bool {
    get { contents.withLock { $0.isHypervisorDown } }
    set { contents.withLock { $0.isHypervisorDown = newValue } }
  }

  /// How long the hypervisor and xenstored take for each answer.
  var delay: Duration {
    get { contents.withLock { $0.delay } }
    set { contents.withLock { $0.delay = newValue } }
  }

  var losesHints: Bool {
    get { contents.withLock { $0.losesHints } }
    set { contents.withLock { $0.losesHints = newValue } }
  }

  func obey(_ number: DomainID) { contents.withLock { _ = $0.obedient.insert(number) } }
  func entry(_ path: String) -> String? { contents.withLock { $0.entries[path] } }
  var questions: Int { contents.withLock { $0.questions } }
  var watches: [String] { contents.withLock { $0.watches } }

  func connect() throws(ProbeError) -> FakeXen {
    guard !isStoreDown else { throw ProbeError(.unavailable, "xenstored is down", remedy: "start it") }
    return self
  }

  private func takeTime() { usleep(UInt32(clamping: delay.wholeNanoseconds / 1_000)) }

  // MARK: XenHypervisor

  func domains(from first: DomainID, limit: Int) throws(SystemFailure) -> [XenDomain] {
    takeTime()
    guard !isHypervisorDown else { throw SystemFailure(call: "list the domains", number: EIO) }
    let found = contents.withLock { $0.domains.values.filter { $0.incarnation.domainID >= first } }
    return Array(found.sorted { $0.incarnation.domainID < $1.incarnation.domainID }.prefix(limit))
  }

  /// A verb on a domain that is there under this number and UUID.
  private func act(_ domain: Incarnation, _ body: (inout Contents) -> Void) throws(SystemFailure) {
    let isThere = contents.withLock { contents in
      let isThere = contents.domains[domain.domainID]?.incarnation == domain
      if isThere { body(&contents) }
      return isThere
    }
    if !isThere { throw SystemFailure(call: "act on a domain", number: ESRCH) }
  }

  func pause(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain) { contents in
      contents.pauses[domain.domainID, default: 0] += 1
      contents.domains[domain.domainID]?.flags.insert(.paused)
    }
  }

  func unpause(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain) { contents in
      contents.pauses[domain.domainID, default: 1] -= 1
      if contents.pauses[domain.domainID] == 0 { contents.domains[domain.domainID]?.flags.remove(.paused) }
    }
  }

  func powerOff(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain) { contents in
      contents.domains[domain.domainID]?.flags.insert(.shutdown)
      contents.domains[domain.domainID]?.reason = .poweroff
    }
  }

  func destroy(_ domain: Incarnation) throws(SystemFailure) {
    try act(domain) { _ in }
    remove(domain.domainID)
  }

  // MARK: XenStoreAccess

  private func failIfDown() throws(SystemFailure) {
    while isStoreSilent { usleep(1000) }
    takeTime()
    if isStoreDown { throw SystemFailure(call: "ask xenstored", number: EPIPE) }
  }

  func read(_ path: String, limit: Int) throws(SystemFailure) -> [UInt8]? {
    try failIfDown()
    contents.withLock { $0.questions += 1 }
    return entry(path).map { Array($0.utf8.prefix(limit)) }
  }

  func list(_ path: String) throws(SystemFailure) -> [String] {
    try failIfDown()
    contents.withLock { $0.questions += 1 }
    let names = contents.withLock { contents in
      contents.entries.keys.filter { $0.hasPrefix(path + "/") }.map {
        String($0.dropFirst(path.count + 1).prefix { $0 != "/" })
      }
    }
    return Set(names).sorted()
  }

  func tell(_ domain: DomainID, _ name: String, _ text: String) throws(SystemFailure) -> Bool {
    try failIfDown()
    guard entry("/local/domain/\(domain)/name") != nil else { return false }
    set("/local/domain/\(domain)/\(name)", text)
    let obedient = contents.withLock { $0.obedient.contains(domain) ? $0.domains[domain] : nil }
    if name == "control/shutdown", let obedient { try powerOff(obedient.incarnation) }
    return true
  }

  func watch(_ path: String) throws(SystemFailure) {
    try failIfDown()
    contents.withLock { $0.watches.append(path) }
  }

  func nextEvent() throws(SystemFailure) -> String? {
    try failIfDown()
    return contents.withLock { $0.events.isEmpty ? nil : $0.events.removeFirst() }
  }
}

extension FakeXen.Contents {
  fileprivate mutating func notify(_ path: String) {
    guard !losesHints else { return }
    if watches.contains(where: { path == $0 || path.hasPrefix($0 + "/") }) { events.append(path) }
  }
}

extension Incarnation {
  /// Number `number` of the test's domains.
  static func test(_ number: UInt32, uuid: UInt64? = nil) -> Incarnation {
    Incarnation(uuid: DomainUUID(high: 9, low: uuid ?? UInt64(number)), domainID: DomainID(number))
  }
}
