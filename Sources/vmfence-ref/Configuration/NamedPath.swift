#if Daemon
import Foundation
import VMFenceCore

/// A path of a host's configuration at which something is begun, made or written while the daemon runs, and where it is named.
struct NamedPath: Sendable {
  enum Use: Sendable {
    /// A program that is started.
    case program
    /// A folder that is made when it is not there, with those above it.
    case folder
    /// A file that is appended to, and made when it is not there.
    case file
    /// A socket that is made.
    case socket
    /// A socket that another program makes, perhaps later.
    case othersSocket
  }

  var use: Use
  var path: String
  /// The key: `control.pause`.
  var key: String
  var place: SourcePlace

  /// Folders that the package's unit makes before the daemon starts.
  static let unitsFolders: Set<String> = ["/run/vmfence", "/var/log/vmfence"]

  /// What the daemon would not find or could not write, as things are now; nothing is made. Only root sees it as the daemon would: to others, a permission that is missing is a
  /// warning.
  var problem: Diagnostic? {
    switch use {
    case .program: programProblem
    case .folder: folderProblem
    case .file: fileProblem
    case .socket: path.hasPrefix("@") ? nil : parentProblem("its socket cannot be made")
    case .othersSocket: othersProblem
    }
  }

  private var programProblem: Diagnostic? {
    let remedy = "name a program that is installed, by its absolute path"
    switch Self.kind(path) {
    case .failure(let error): return report("the program `\(shown)` cannot be started", error, remedy)
    case .success(let kind) where kind != S_IFREG:
      return Diagnostic(at: place, "\(key): `\(shown)` is no program, but a folder or device", remedy: remedy)
    case .success:
      return Self.access(path, X_OK).flatMap {
        report("the program `\(shown)` cannot be started", $0, "let it be executed (chmod +x), or name another")
      }
    }
  }

  /// The next above that is there is where folders would be made.
  private var folderProblem: Diagnostic? {
    var folder = path
    while case .failure(let error) = Self.kind(folder), [ENOENT, ENOTDIR].contains(error.rawValue),
      folder != "/", folder != "."
    {
      folder = Self.parent(of: folder)
    }
    return writingProblem(of: folder, folder == path ? "it cannot be written" : "it cannot be made")
  }

  private var fileProblem: Diagnostic? {
    switch Self.kind(path) {
    case .failure(.init(rawValue: ENOENT)): return parentProblem("it cannot be made")
    case .failure(let error): return report("`\(shown)`: it cannot be written", error, "name another")
    case .success(S_IFDIR):
      return report("`\(shown)`: it cannot be written", .init(rawValue: EISDIR), "name a file in it")
    case .success:
      return Self.access(path, W_OK).flatMap {
        report("`\(shown)`: it cannot be written", $0, "give it to the user that runs the daemon, or name another")
      }
    }
  }

  private func parentProblem(_ consequence: String) -> Diagnostic? {
    let folder = Self.parent(of: path)
    if Self.unitsFolders.contains(folder), case .failure(.init(rawValue: ENOENT)) = Self.kind(folder) { return nil }
    return writingProblem(of: folder, consequence)
  }

  private func writingProblem(of folder: String, _ consequence: String) -> Diagnostic? {
    let message = "`\(shown)`: \(consequence): the folder `\(folder.escapedForDisplay)` cannot be written"
    switch Self.kind(folder) {
    case .failure(let error): return report(message, error, "make it, or name another")
    case .success(let kind) where kind != S_IFDIR: return report(message, .init(rawValue: ENOTDIR), "name another")
    case .success:
      return Self.access(folder, W_OK | X_OK).flatMap {
        report(message, $0, "give it to the user that runs the daemon, or name another")
      }
    }
  }

  private var othersProblem: Diagnostic? {
    let folder = Self.parent(of: path)
    guard !path.hasPrefix("@"), case .failure(let error) = Self.kind(folder) else { return nil }
    return Diagnostic(
      .warning, at: place,
      "\(key): nobody can listen on `\(shown)` yet: the folder `\(folder.escapedForDisplay)`: \(describeError(error.rawValue))",
      remedy: "check the path; whoever listens there makes it")
  }

  private var shown: String { path.escapedForDisplay }

  private func report(_ message: String, _ error: ErrorNumber, _ remedy: String) -> Diagnostic {
    let isThisUsers = error.rawValue == EACCES && geteuid() != 0
    return Diagnostic(
      isThisUsers ? .warning : .error, at: place,
      "\(key): \(message): \(describeError(error.rawValue))\(isThisUsers ? " for the user that checks" : "")",
      remedy: isThisUsers ? "check it as the user that runs the daemon" : remedy)
  }

  private struct ErrorNumber: Error, Hashable { var rawValue: Int32 }

  /// Of what is at a path, links followed: `S_IFREG` and so on.
  private static func kind(_ path: String) -> Result<mode_t, ErrorNumber> {
    var status = stat()
    // SAFETY: stat(2) reads the path up to its NUL and writes one structure.
    return unsafe stat(path, &status) == 0 ? .success(status.st_mode & S_IFMT) : .failure(.init(rawValue: errno))
  }

  private static func access(_ path: String, _ mode: Int32) -> ErrorNumber? {
    // SAFETY: faccessat(2) reads the path up to its NUL.
    unsafe faccessat(AT_FDCWD, path, mode, AT_EACCESS) == 0 ? nil : .init(rawValue: errno)
  }

  private static func parent(of path: String) -> String {
    let folder = (path as NSString).deletingLastPathComponent
    return folder.isEmpty ? "." : folder
  }
}
#endif
