import Foundation
import TestSupport
import VMFenceCore

/// A socket server of a test's own, which keeps what it gets.
final class Peer {
  enum Kind { case unixStream, unixDatagram, tcp, udp }

  let kind: Kind
  let path: String
  private(set) var port: UInt16 = 0
  private var listener: Int32 = -1
  private var connection: Int32 = -1
  private var buffer: [UInt8] = []

  init(_ kind: Kind, port: UInt16 = 0) throws {
    self.kind = kind
    path = NSTemporaryDirectory() + "vmfence-peer-\(UUID().uuidString.prefix(8))"
    switch kind {
    case .unixStream: listener = try LocalSocket.bind(at: path, .stream, mode: 0o600)
    case .unixDatagram: listener = try LocalSocket.bind(at: path, .datagram, mode: 0o600)
    case .tcp: (listener, self.port) = try NetworkSocket.listen(address: "127.0.0.1", port: port)
    case .udp:
      listener = socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue), 0)
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
      var length = socklen_t(MemoryLayout<sockaddr_in>.size)
      // SAFETY: a sockaddr_in may be handed over as a sockaddr; it is valid during the calls.
      unsafe withUnsafeMutablePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
          _ = unsafe bind(listener, pointer, length)
          _ = unsafe getsockname(listener, pointer, &length)
        }
      }
      self.port = UInt16(bigEndian: address.sin_port)
    }
  }

  deinit {
    hangUp()
    if listener >= 0 { close(listener) }
    remove(path)
  }

  func hangUp() {
    // Not only closed: a process that another test is starting has a copy for an instant.
    if connection >= 0 {
      shutdown(connection, Int32(SHUT_RDWR))
      close(connection)
    }
    connection = -1
  }

  /// Stops listening, and takes its place away.
  func leave() {
    hangUp()
    close(listener)
    listener = -1
    remove(path)
  }

  func send(_ text: String) {
    let bytes = Array(text.utf8)
    // SAFETY: the buffer is valid during the call.
    _ = unsafe bytes.withUnsafeBytes {
      unsafe Foundation.send(connection, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
    }
  }

  /// What comes until `isEnough` says so, or it is waited for in vain. Of datagrams, each is one element; of a stream, all is one.
  func receive(until isEnough: ([String]) -> Bool) -> [String] {
    let isStream = kind == .unixStream || kind == .tcp
    var datagrams: [String] = []
    var received: [String] { isStream ? [String(decoding: buffer, as: UTF8.self)] : datagrams }
    _ = comesTrue {
      if isStream, connection < 0 {
        connection = accept(listener, nil, nil)
        if connection >= 0 {
          _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
          _ = fcntl(connection, F_SETFL, O_NONBLOCK)
        }
      }
      while let chunk = chunk(from: isStream ? connection : listener), !isEnough(received) {
        if isStream { buffer += chunk } else { datagrams.append(String(decoding: chunk, as: UTF8.self)) }
      }
      return isEnough(received)
    }
    return received
  }

  /// What one call takes, unless there is nothing.
  private func chunk(from descriptor: Int32) -> ArraySlice<UInt8>? {
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    // SAFETY: the buffer is valid for its count.
    let count = unsafe chunk.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
    return count > 0 ? chunk[..<count] : nil
  }

  /// Whole lines of a stream.
  func lines(_ count: Int) -> [String] {
    receive { $0[0].count { $0 == "\n" } >= count }[0].split(separator: "\n").map(String.init)
  }
}

/// Takes a file away, if it is there.
func remove(_ path: String) { try? FileManager.default.removeItem(atPath: path) }

let guest = Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3))
let other = Incarnation(uuid: DomainUUID(high: 1, low: 3), domainID: DomainID(4))

func directory() -> DomainDirectory {
  DomainDirectory([
    DomainDescription(incarnation: guest, name: "we\"b]", tenant: TenantID("acme"), serviceType: "http"),
    DomainDescription(incarnation: other, name: "db", tenant: TenantID("globex")),
  ])
}

func alert(_ sid: UInt32 = 7, on incarnation: Incarnation = guest, message: String = "attack") -> Event {
  .alert(
    Alert(
      time: Timestamp(seconds: 1_700_000_000, nanoseconds: 123_456_000), incarnation: incarnation, packetID: 0,
      rule: RuleMetadata(sid: sid, message: message, classification: "misc-attack", priority: 2), flowID: 1,
      source: IPAddress("203.0.113.7")!, destination: IPAddress("192.0.2.1")!, sourcePort: 4_000, destinationPort: 80,
      ipProtocol: 6, direction: .toServer, isEstablished: true))
}

func notice() -> Event {
  .platform(PlatformAlert(time: Timestamp(seconds: 1_700_000_000), incarnation: nil, kind: .clockJump, message: "m"))
}
