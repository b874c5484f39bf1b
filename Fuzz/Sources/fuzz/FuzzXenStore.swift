import Synchronization

@testable import VMFenceCore
@testable import VMFenceXen

// What stands in xenstore about domains: what a guest offers there, and what the toolstack wrote. The input is entries, a byte that says where it stands, a
// name, 0xFE, a value, and 0xFF: of a domain's folder, of the folders of its devices, or anywhere; or the path of a hint; or nothing, and a look at what stands
// by then. Checked besides "no trap": devices, questions and problems are bounded; a name, a card and its addresses are ones that there can be; an offer
// is understood in one way; what is said of it has nothing that acts on a terminal; and a second look finds the same.

/// xenstored: entries and hints, and how often it was asked.
private final class DoubleStore: XenStoreAccess {
  struct Contents {
    var entries: [String: [UInt8]] = [:]
    var hints: [String] = []
    var questions = 0
  }
  let contents = Mutex(Contents())
  let descriptor: CInt = -1

  func read(_ path: String, limit: Int) throws(SystemFailure) -> [UInt8]? {
    contents.withLock { contents in
      contents.questions += 1
      return contents.entries[path].map { Array($0.prefix(limit)) }
    }
  }

  func list(_ path: String) throws(SystemFailure) -> [String] {
    let names = contents.withLock { contents in
      contents.questions += 1
      return contents.entries.keys.filter { $0.hasPrefix(path + "/") }.map {
        String($0.dropFirst(path.count + 1).prefix { $0 != "/" })
      }
    }
    return Set(names).sorted()
  }

  func tell(_ domain: DomainID, _ entry: String, _ text: String) throws(SystemFailure) -> Bool { false }
  func watch(_ path: String) throws(SystemFailure) {}
  func nextEvent() throws(SystemFailure) -> String? {
    contents.withLock { $0.hints.isEmpty ? nil : $0.hints.removeFirst() }
  }
}

private let domains = (1...2).map { number in
  XenDomain(
    Incarnation(uuid: DomainUUID(high: 7, low: UInt64(number)), domainID: DomainID(UInt32(number))),
    isHardwareVirtualised: number == 2)
}
/// Of one domain at the most: each of its devices has a few entries.
private let questionLimit = 4 + 4 * DomainDetails.portLimit + 4 * 2 * DomainDetails.diskLimit
private let backends = "/local/domain/0/backend"

func fuzzXenStore(_ input: RawSpan) {
  let store = DoubleStore()
  var follower = XenStoreFollower(
    connect: { () throws(ProbeError) in store },
    interfaceExists: { NetworkPort.isInterfaceName($0) && $0.utf8.count.isMultiple(of: 2) })
  var inventory = XenInventory(refreshInterval: .seconds(1))
  var now = Duration.zero
  for record in input.copiedBytes().split(separator: 0xFF, maxSplits: 512) {
    let fields = record.dropFirst().split(separator: 0xFE, maxSplits: 1, omittingEmptySubsequences: false)
    let name = String(decoding: fields.first ?? [], as: UTF8.self)
    let value = fields.count == 2 ? Array(fields[1]) : []
    let number = 1 + (record.first ?? 0) / 8 % 2
    let path =
      switch (record.first ?? 0) % 8 {
      case 0: "/local/domain/\(number)/\(name)"
      case 1: "\(backends)/vif/\(number)/\(name)"
      case 2: "\(backends)/vbd/\(number)/\(name)"
      case 3: "\(backends)/qdisk/\(number)/\(name)"
      case 4: "/local/domain/\(number)/\(XenChannelOffer.path)"
      default: name
      }
    switch (record.first ?? 0) % 8 {
    case 0...5: store.contents.withLock { $0.entries[path] = value }
    case 6: store.contents.withLock { $0.hints.append(path) }
    default:
      now += .milliseconds(record.count * 100)
      look(store, &follower, &inventory, at: now)
    }
  }
  look(store, &follower, &inventory, at: now)
}

private func look(
  _ store: DoubleStore, _ follower: inout XenStoreFollower, _ inventory: inout XenInventory, at now: Duration
) {
  let hints = follower.takeHints(at: now)
  // As the probe does: what no look is needed for is taken over without one.
  let areTaken = inventory.take(hints)
  inventory.look(at: now, finding: domains, after: areTaken ? XenHints() : hints)
  inventory.note(follower.state)
  store.contents.withLock { $0.questions = 0 }
  let readings = follower.read(domains)
  precondition(store.contents.withLock { $0.questions } <= questionLimit * domains.count, "it asks without end")
  precondition(follower.read(domains) == readings, "a second look finds something else")
  inventory.take(readings, at: now)
  readings.forEach { check($0.details) }
  let news = inventory.takeNews()
  news.gaps.forEach(checkShown)
  inventory.problems.forEach { checkShown($0.message) }
  precondition(inventory.problems.count <= 64, "problems without end")
  precondition(inventory.takeNews() == XenInventory.News(), "news that are told twice")
  for domain in inventory.domains { precondition(!domain.name.isEmpty, "a domain without a name") }
  domains.forEach { check($0.incarnation.domainID, store) }
}

private func check(_ details: DomainDetails) {
  precondition(details.ports.count <= 2 * DomainDetails.portLimit, "more cards than are followed")
  precondition(details.disks.count <= 2 * DomainDetails.diskLimit, "more disks than are followed")
  precondition(details.name.map { !$0.isEmpty && $0.utf8.count <= 3 * 256 } ?? true, "a name that is none")
  for port in details.ports {
    for name in [port.interface, port.bridge].compactMap(\.self) {
      precondition(NetworkPort.isInterfaceName(name), "a name that no interface can have")
    }
    precondition(!port.mac.isMulticast && MACAddress(port.mac.description) == port.mac, "no address of a card")
    precondition(port.addresses.allSatisfy { IPAddress($0.description) == $0 }, "another address")
  }
  for disk in details.disks {
    precondition(!disk.source.isEmpty, "a disk without a source")
    precondition(max(disk.source.utf8.count, disk.device.utf8.count) <= 3 * 1024, "a disk's words without end")
  }
  for problem in details.problems {
    checkShown(problem.message)
    precondition(problem.message.utf8.count <= 256, "a problem's words without end")
  }
}

private func check(_ domain: DomainID, _ store: DoubleStore) {
  guard let bytes = try? store.read("/local/domain/\(domain)/\(XenChannelOffer.path)", limit: 4096) else { return }
  guard let offer = try? XenChannelOffer.read(of: domain, from: store) else { return }
  precondition(bytes.count <= 32 && bytes.allSatisfy { $0 == 0x20 || (0x30...0x39).contains($0) }, "no numbers")
  let numbers = bytes.split(separator: 0x20, omittingEmptySubsequences: false).map {
    String(decoding: $0, as: UTF8.self)
  }
  precondition(numbers.map { UInt32($0) } == [offer.reference] + (offer.port.map { [$0] } ?? []), "other numbers")
}
