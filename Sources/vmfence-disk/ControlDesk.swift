#if Daemon
internal import CLinux
import Foundation
import VMFenceControl
import VMFenceCore

/// The control socket of a disk's process, served between the guest's requests by the thread that serves those: the system call
/// filter forbids others. Everything that a client sends, or does not read, is bounded.
final class ControlDesk {
  static let clientLimit = 4
  /// In bytes.
  static let requestLimit = 64 << 10
  /// How long a client may say nothing.
  static let patience = Duration.seconds(30)

  private struct Client {
    var descriptor: Int32
    var input: [UInt8] = []
    var lastHeard: Timestamp
    /// It is told of what changes, and need not say anything.
    var isFollowing = false
  }

  private let listener: Int32
  private var clients: [Client] = []

  /// Begins to listen; mode 0600. A socket that nobody listens at any more is replaced.
  init(path: String) throws(SystemFailure) { listener = try LocalSocket.bind(at: path, .stream, mode: 0o600) }

  deinit {
    close(listener)
    for client in clients { close(client.descriptor) }
  }

  /// Answers what has come, without waiting.
  func serve(at time: Timestamp, _ handler: (DiskControlRequest) -> Result<DiskControlStatus, ControlFailure>) {
    let descriptor = vmfence_unix_accept(listener, 1000, 1000, 64 << 10)
    if descriptor >= 0 {
      if clients.count < Self.clientLimit {
        clients.append(Client(descriptor: descriptor, lastHeard: time))
      } else {
        _ = send(.failure(ControlFailure("\(Self.clientLimit) clients are served already")), to: descriptor)
        close(descriptor)
      }
    }
    for index in clients.indices.reversed() where !serve(&clients[index], at: time, handler) {
      close(clients[index].descriptor)
      clients.remove(at: index)
    }
  }

  /// - Returns: false when it has left, or is to.
  private func serve(
    _ client: inout Client, at time: Timestamp,
    _ handler: (DiskControlRequest) -> Result<DiskControlStatus, ControlFailure>
  ) -> Bool {
    var chunk = [UInt8](repeating: 0, count: 4096)
    // SAFETY: as many bytes as the chunk has.
    let count = unsafe chunk.withUnsafeMutableBytes {
      unsafe vmfence_receive(client.descriptor, $0.baseAddress, $0.count, 0)
    }
    guard count > 0 else {
      guard count < 0, errno == EAGAIN || errno == EINTR else { return false }
      return client.isFollowing || time - client.lastHeard < Self.patience
    }
    client.lastHeard = time
    client.input += chunk[..<count]
    while let end = client.input.firstIndex(of: 0x0A) {
      let line = Array(client.input[..<end])
      client.input.removeFirst(end + 1)
      let request = try? JSONDecoder().decode(DiskControlRequest.self, from: Data(line))
      if request?.verb == .follow { client.isFollowing = true }
      guard send(answer(request, handler), to: client.descriptor) else { return false }
    }
    guard client.input.count <= Self.requestLimit else {
      _ = send(.failure(ControlFailure("a request has at most \(Self.requestLimit) bytes")), to: client.descriptor)
      return false
    }
    return true
  }

  /// Tells those who follow; whoever does not take it is hung up on.
  func tell(_ status: DiskControlStatus) {
    let line = Self.encode(status)
    for index in clients.indices.reversed() where clients[index].isFollowing {
      guard !send(line, to: clients[index].descriptor) else { continue }
      close(clients[index].descriptor)
      clients.remove(at: index)
    }
  }

  private func answer(
    _ request: DiskControlRequest?, _ handler: (DiskControlRequest) -> Result<DiskControlStatus, ControlFailure>
  ) -> Result<[UInt8], ControlFailure> {
    guard let request else {
      let verbs = DiskControlRequest.Verb.allCases.map(\.rawValue).joined(separator: ", ")
      return .failure(ControlFailure("this is no request", remedy: "one JSON object with `verb`: one of \(verbs)"))
    }
    return handler(request).flatMap(Self.encode)
  }

  private static func encode(_ status: DiskControlStatus) -> Result<[UInt8], ControlFailure> {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    guard let bytes = try? encoder.encode(status) else { return .failure(ControlFailure("there is no answer")) }
    return .success(Array(bytes))
  }

  /// - Returns: false when the client does not take the answer, which is shorter than what its socket holds.
  private func send(_ result: Result<[UInt8], ControlFailure>, to descriptor: Int32) -> Bool {
    let bytes = ControlAnswer.encode(result)
    // SAFETY: the array's bytes are read.
    return unsafe bytes.withUnsafeBytes { unsafe vmfence_send(descriptor, $0.baseAddress, $0.count, 0) } == bytes.count
  }
}
#endif
