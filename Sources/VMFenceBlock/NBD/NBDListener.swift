internal import CLinux
internal import Glibc
public import VMFenceCore

/// A unix socket that NBD clients connect to. Apart from `NBDServer`, so that a process can listen while it may open
/// files, then give up its privileges, and only then start to serve.
public struct NBDListener: ~Copyable {
  let path: String
  private(set) var descriptor: CInt

  /// Begins to listen. A socket at `path` that nobody listens on is replaced.
  ///
  /// - `path`: at most 107 bytes.
  /// - `mode`: permissions of the socket's file.
  /// - Throws: `inUse` when somebody listens there already, `permissionDenied`, `inputOutput`.
  public init(path: String, mode: UInt32 = 0o600) throws(BlockSourceError) {
    self.path = path
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    descriptor = unsafe vmfence_unix_listen(path, mode, 16)
    guard descriptor >= 0 else { throw DiskFile.failure("listen on the socket", path, errno) }
  }

  deinit { if descriptor >= 0 { Self.end(descriptor) } }

  /// Nobody can connect any more, though a process that another thread is starting has a copy of the descriptor for an instant: who listens there next would be told that
  /// somebody does.
  static func end(_ descriptor: CInt) {
    shutdown(descriptor, CInt(SHUT_RDWR))
    close(descriptor)
  }

  /// The socket is the caller's from here on.
  consuming func release() -> CInt {
    let result = descriptor
    descriptor = -1
    return result
  }
}
