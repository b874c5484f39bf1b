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

  let port: UInt16
  private let listener: Int32
  private let taken = Mutex<[String]>([])

  init(_ answer: @escaping Answer) throws {
    (listener, port) = try NetworkSocket.listen(address: "127.0.0.1", port: 0)
    _ = fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) & ~O_NONBLOCK)
    Thread.detachNewThread { [weak self, listener] in
      while true {
        let descriptor = accept(listener, nil, nil)
        guard descriptor >= 0 else { return }
        guard let self else {
          close(descriptor)
          return
        }
        Thread.detachNewThread {
          defer { close(descriptor) }
          guard let request = Self.request(descriptor) else { return }
          self.taken.withLock { $0.append(request) }
          answer(Client(descriptor: descriptor))
        }
      }
    }
  }

  deinit {
    // Wakes whoever waits for a client.
    shutdown(listener, Int32(SHUT_RDWR))
    close(listener)
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
