#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceChannel
import VMFenceCore

/// What guests declared over the policy channel, and stands. Kept in the state directory: a guest that is owned cannot wait for a restart to declare less.
struct Declarations: Sendable, Equatable {
  private struct Kept: Codable {
    var service: String?
    var paths: [String]
    /// What the operator took back.
    var refused: [String]?
    var takesNothing: Bool?
  }

  static let fileName = "declarations.json"
  /// Guests that are remembered; of more, those that are not there are forgotten first.
  private static let guestLimit = 4096

  var byUUID: [DomainUUID: TenantDeclaration] = [:]
  private(set) var refusals: [DomainUUID: DeclarationRefusal] = [:]

  /// What stands of a guest by what its channel says, which may not have heard yet what is not taken any more.
  mutating func take(_ declaration: TenantDeclaration, of uuid: DomainUUID) {
    byUUID[uuid] = refusals[uuid]?.applied(to: declaration) ?? declaration
  }

  /// Takes this of a guest no more, and takes back what stands of it.
  mutating func refuse(_ refusal: DeclarationRefusal, of uuid: DomainUUID) {
    refusals[uuid] = refusal.isNothing ? nil : refusal
    if let standing = byUUID[uuid] { take(standing, of: uuid) }
  }

  /// The services that are declared, of those for which there are rules.
  func services(among known: some Sequence<String>) -> [DomainUUID: String] {
    let known = Set(known)
    return byUUID.compactMapValues { $0.serviceType.flatMap { known.contains($0) ? $0 : nil } }
  }

  /// None, when there is no such file. What cannot be declared any more is left out, and the rest stands.
  static func read(stateDirectory: String?) throws(DamagedFile) -> Declarations {
    var result = Declarations()
    guard let stateDirectory,
      let kept = try KeptJSON.read([String: Kept].self, from: stateDirectory + "/" + fileName)
    else { return result }
    for (text, guest) in kept {
      guard let uuid = DomainUUID(text) else { continue }
      result.byUUID[uuid] = TenantDeclaration(serviceType: guest.service, protectedPaths: guest.paths).validated
      result.refuse(
        DeclarationRefusal(isWhole: guest.takesNothing ?? false, paths: Set(guest.refused ?? [])), of: uuid)
    }
    return result
  }

  /// Makes room for guests that are there.
  mutating func shrink(keeping present: Set<DomainUUID>) {
    guard byUUID.count > Self.guestLimit else { return }
    for uuid in byUUID.keys.filter({ !present.contains($0) }).prefix(byUUID.count - Self.guestLimit) {
      byUUID[uuid] = nil
    }
  }

  /// Whole, or not at all.
  func write(stateDirectory: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    let kept = Dictionary(
      uniqueKeysWithValues: Set(byUUID.keys).union(refusals.keys).map { uuid in
        let (declared, refusal) = (byUUID[uuid] ?? TenantDeclaration(), refusals[uuid])
        return (
          uuid.description,
          Kept(
            service: declared.serviceType, paths: declared.protectedPaths, refused: refusal?.paths.sorted(),
            takesNothing: refusal?.isWhole)
        )
      })
    try encoder.encode(kept).write(to: URL(filePath: stateDirectory + "/" + Self.fileName), options: .atomic)
  }
}

/// Writes them beside the loop: guests cause it, and a disk can be slow. When several came meanwhile, the last counts. Safe to use from any thread.
final class DeclarationWriter: Sendable {
  private let directory: String
  private let logger: Logger
  private let queue = DispatchQueue(label: "vmfence-declarations")
  private let waiting = Mutex<Declarations?>(nil)

  init(stateDirectory: String, logger: Logger) {
    directory = stateDirectory
    self.logger = logger
  }

  func write(_ declarations: Declarations) {
    let isAlone = waiting.withLock { waiting in
      defer { waiting = declarations }
      return waiting == nil
    }
    guard isAlone else { return }
    queue.async { [self] in
      let newest = waiting.withLock { waiting in
        defer { waiting = nil }
        return waiting
      }
      do { try newest?.write(stateDirectory: directory) } catch {
        logger.error(
          "what guests declared cannot be kept in \(directory): \(error.localizedDescription) (free space there)")
      }
    }
  }

  /// Returns when the last of it is written.
  func finish() { queue.sync {} }
}
#endif
