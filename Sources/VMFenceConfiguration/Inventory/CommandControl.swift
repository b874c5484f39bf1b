#if Daemon
internal import Foundation
internal import Synchronization
public import VMFenceCore

/// Acts on domains through programs of the host (`virsh`, `xl`, a script): what a host without an adapter of ours has. No shell is involved.
public struct CommandControl: HypervisorControl {
  public enum Act: String, Sendable, Hashable, CaseIterable {
    case pause, resume
    case shutDown = "shut-down"
  }

  /// For each act a program and its arguments. `{name}`, `{uuid}` and `{domid}` within an argument stand for the domain's.
  public var commands: [Act: [String]]
  /// A program that takes longer is ended.
  public var timeout: Duration
  private let directory: DomainDirectory

  public init(_ commands: [Act: [String]], directory: DomainDirectory, timeout: Duration = .seconds(30)) {
    self.commands = commands
    self.directory = directory
    self.timeout = timeout
  }

  public func pause(_ domain: Incarnation) async throws(ProbeError) { try await run(.pause, domain) }
  public func resume(_ domain: Incarnation) async throws(ProbeError) { try await run(.resume, domain) }
  public func shutDown(_ domain: Incarnation) async throws(ProbeError) { try await run(.shutDown, domain) }

  private func run(_ act: Act, _ domain: Incarnation) async throws(ProbeError) {
    guard let command = commands[act], let program = command.first else {
      throw ProbeError(
        .unavailable, "no command is configured to \(act.rawValue) a domain", remedy: "give `control` one")
    }
    guard let description = directory.entry(for: domain)?.description else {
      throw ProbeError(.noSuchDomain, "there is no domain \(domain)", remedy: "look at the inventory")
    }
    let arguments = command.dropFirst().map { argument in
      argument.replacingOccurrences(of: "{name}", with: description.name)
        .replacingOccurrences(of: "{uuid}", with: domain.uuid.description)
        .replacingOccurrences(of: "{domid}", with: domain.domainID.description)
    }
    let status = await Self.run(program, arguments, timeout)
    guard status == 0 else {
      throw ProbeError(
        .failed,
        "`\(program.escapedForDisplay)` \(status.map { "ended with \($0)" } ?? "did not end, or cannot be started")",
        remedy: "try it by hand")
    }
  }

  /// nil when it cannot be started, or was ended because it took too long.
  private static func run(_ program: String, _ arguments: [String], _ timeout: Duration) async -> Int32? {
    await withCheckedContinuation { continuation in
      let process = Process()
      process.executableURL = URL(filePath: program)
      process.arguments = arguments
      process.standardInput = FileHandle.nullDevice
      process.standardOutput = FileHandle.nullDevice
      process.standardError = FileHandle.nullDevice
      process.terminationHandler = { ended in
        continuation.resume(returning: ended.terminationReason == .exit ? ended.terminationStatus : nil)
      }
      do { try process.run() } catch {
        process.terminationHandler = nil
        continuation.resume(returning: nil)
        return
      }
      let number = process.processIdentifier
      DispatchQueue.global().asyncAfter(deadline: .now() + Double(timeout.wholeNanoseconds) / 1e9) {
        if process.isRunning, process.processIdentifier == number { process.terminate() }
      }
    }
  }
}
#endif
