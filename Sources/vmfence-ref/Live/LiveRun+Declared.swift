#if Daemon
import VMFenceChannel
import VMFenceControl
import VMFenceCore

// What guests declared, and taking it back.

extension LiveRun {
  /// Paths that are not taken of one guest; beyond that its operator takes nothing of it at all.
  private static var refusalLimit: Int { 1024 }

  /// Answers `declared`, `declared-forget` and `declared-allow`. What is taken back is written down before it is so.
  func declared(_ request: ControlRequest, at now: Timestamp) async throws(ControlFailure) -> DeclaredStatus {
    let (name, uuid) = try declarer(request)
    var changed = declarations
    switch request.verb {
    case .declaredForget: changed.refuse(try refusal(request, of: uuid, name), of: uuid)
    case .declaredAllow: changed.refuse(DeclarationRefusal(), of: uuid)
    default: break
    }
    if changed != declarations {
      if let directory = host.configuration.stateDirectory {
        do { try changed.write(stateDirectory: directory) } catch {
          throw ControlFailure(
            "nothing was changed: it cannot be kept in \(directory): \(error.localizedDescription)",
            remedy: "free space there")
        }
      }
      let refusal = changed.refusals[uuid] ?? DeclarationRefusal()
      declarations = changed
      channels?.refuse(refusal, of: uuid)
      let left = refusal.isWhole ? "nothing is taken" : "\(refusal.paths.count) paths are not taken"
      logger.notice("asked for over the control socket: of what \(name) declares \(left)")
      useDeclarations()
      await refreshInventory(at: now)
    }
    let (standing, refusal) = (declarations.byUUID[uuid], declarations.refusals[uuid])
    return DeclaredStatus(
      domain: name, uuid: uuid.description, service: standing?.serviceType, paths: standing?.protectedPaths ?? [],
      refused: refusal?.paths.sorted() ?? [], takesNothing: refusal?.isWhole ?? false)
  }

  /// A guest of this host, or one that is not there and declared something.
  private func declarer(_ request: ControlRequest) throws(ControlFailure) -> (String, DomainUUID) {
    let text = request.domain ?? ""
    if let found = directory.find(text) { return (found.name, found.incarnation.uuid) }
    if let uuid = DomainUUID(text), declarations.byUUID[uuid] != nil || declarations.refusals[uuid] != nil {
      return (uuid.description, uuid)
    }
    throw ControlFailure(
      "there is no domain `\(text.escapedForDisplay)`",
      remedy: "list them: vmfence-ref domains; one that is not there is known by its UUID")
  }

  private func refusal(
    _ request: ControlRequest, of uuid: DomainUUID, _ name: String
  ) throws(ControlFailure) -> DeclarationRefusal {
    var refusal = declarations.refusals[uuid] ?? DeclarationRefusal()
    if request.all == true {
      refusal.isWhole = true
      return refusal
    }
    let standing = Set(declarations.byUUID[uuid]?.protectedPaths ?? [])
    guard let paths = request.files, !paths.isEmpty else {
      throw ControlFailure("what is to be forgotten is missing", remedy: "give `files`, or `all`")
    }
    if let unknown = paths.first(where: { !standing.contains($0) && !refusal.paths.contains($0) }) {
      throw ControlFailure(
        "`\(unknown.escapedForDisplay)` is nothing that \(name.escapedForDisplay) declared",
        remedy: "list it: vmfence-ref declared \(name.escapedForDisplay)")
    }
    refusal.paths.formUnion(paths)
    guard refusal.paths.count <= Self.refusalLimit else {
      throw ControlFailure(
        "\(refusal.paths.count) paths, and at most \(Self.refusalLimit) can be refused one by one",
        remedy: "take nothing of this guest: --all")
    }
    return refusal
  }
}
#endif
