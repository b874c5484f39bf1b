import Foundation
import Synchronization
import VMFenceCore

/// An HTTP server of a test's own on 127.0.0.1: takes requests whole, each connection in a thread, and answers as it is told.
final class WebServer: Sendable {
  /// What the server says to a client whose request it has read.
  typealias Answer = @Sendable (Client) -> Void

  struct Client {
    fileprivate let descriptor: Int32

    /// - Returns: false when nobody takes it any more.
    func send(_ text: String) -> Bool {
      let bytes = Array(text.utf8)
      var sent = 0
      while sent < bytes.count {
        // SAFETY: the rest of the array, for reading.
        let count = unsafe bytes[sent...].withUnsafeBytes {
          unsafe Foundation.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        guard count > 0 else { return false }
        sent += count
      }
      return true
    }
  }

  /// Closed when neither the server nor its thread has it any more: a number that is closed earlier is another test's by the time that the thread uses it.
  private final class Listener: Sendable {
    let descriptor: Int32
    init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit { close(descriptor) }
  }

  let port: UInt16
  private let listener: Listener
  private let taken = Mutex<[String]>([])

  init(_ answer: @escaping Answer) throws {
    let (socket, port) = try NetworkSocket.listen(address: "127.0.0.1", port: 0)
    _ = fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) & ~O_NONBLOCK)
    (listener, self.port) = (Listener(socket), port)
    Thread.detachNewThread { [weak self, listener] in
      while true {
        let descriptor = accept(listener.descriptor, nil, nil)
        guard descriptor >= 0 else { return }
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        guard let self else {
          close(descriptor)
          return
        }
        Thread.detachNewThread {
          defer {
            // Not only closed: a process that another test is starting has a copy for an instant.
            shutdown(descriptor, Int32(SHUT_RDWR))
            close(descriptor)
          }
          guard let request = Self.request(descriptor) else { return }
          self.taken.withLock { $0.append(request) }
          answer(Client(descriptor: descriptor))
        }
      }
    }
  }

  deinit {
    // Wakes whoever waits for a client.
    shutdown(listener.descriptor, Int32(SHUT_RDWR))
  }

  /// What clients sent, head and body.
  var requests: [String] { taken.withLock { $0 } }

  private static func request(_ descriptor: Int32) -> String? {
    var buffer: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let text = String(decoding: buffer, as: UTF8.self)
      if let head = text.range(of: "\r\n\r\n") {
        let length = text[..<head.lowerBound].components(separatedBy: "\r\n").lazy
          .filter { $0.lowercased().hasPrefix("content-length:") }
          .compactMap { Int($0.dropFirst(15).trimmingCharacters(in: .whitespaces)) }.first
        if text[head.upperBound...].utf8.count >= length ?? 0 { return text }
      }
      // SAFETY: as many bytes as the chunk has.
      let count = unsafe chunk.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
      guard count > 0 else { return nil }
      buffer += chunk[..<count]
    }
  }
}
