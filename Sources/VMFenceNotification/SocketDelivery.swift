internal import Glibc
internal import VMFenceCore

/// Lines to a unix socket that another program made, as Suricata's `eve-log: filetype: unix_stream` and `unix_dgram` do: a line feed ends each line of a
/// stream; a datagram holds one line.
public final class UnixSocketDelivery: Delivery, @unchecked Sendable {
  public enum Kind: String, Sendable, CaseIterable { case stream, datagram }

  public private(set) var refused: UInt64 = 0
  private let path: String
  private let kind: Kind
  private var channel: Channel?

  public init(path: String, kind: Kind) {
    self.path = path
    self.kind = kind
  }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    if channel == nil {
      do throws(SystemFailure) {
        channel = Channel(
          try LocalSocket.connect(to: path, kind == .stream ? .stream : .datagram), isStream: kind == .stream)
      } catch { throw DeliveryFailure(error.description) }
    }
    guard let channel else { return 0 }
    do throws(DeliveryFailure) { return try channel.deliver(lines, &refused) } catch {
      reset()
      throw error
    }
  }

  public func reset() { channel = nil }
}

/// Syslog messages (RFC 5424): to the local daemon's socket, by UDP (RFC 5426, one message a datagram), or by TCP (RFC 6587 §3.4.1, with
/// the length before each).
public final class SyslogDelivery: Delivery, @unchecked Sendable {
  public enum Target: Sendable, Hashable {
    /// A datagram socket: `/dev/log`.
    case local(path: String)
    case udp(host: String, port: UInt16)
    case tcp(host: String, port: UInt16)
  }

  /// A datagram is cut there: what all receivers of IPv6 must take (RFC 5426 §3.2) would be 1180; practice takes more.
  static let datagramLimit = 8_192
  private static let timeout = Duration.seconds(5)

  public private(set) var refused: UInt64 = 0
  private let target: Target
  private var channel: Channel?

  public init(_ target: Target) { self.target = target }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    if channel == nil {
      do throws(SystemFailure) {
        switch target {
        case .local(let path): channel = Channel(try LocalSocket.connect(to: path, .datagram), isStream: false)
        case .udp(let host, let port):
          channel = Channel(
            try NetworkSocket.connect(.udp, host: host, port: port, timeout: Self.timeout), isStream: false)
        case .tcp(let host, let port):
          channel = Channel(
            try NetworkSocket.connect(.tcp, host: host, port: port, timeout: Self.timeout), isStream: true)
        }
      } catch { throw DeliveryFailure(error.description) }
    }
    guard let channel else { return 0 }
    let isStream = channel.isStream
    let framed = lines.map { line in
      isStream ? Array("\(line.count) ".utf8) + line : Array(line.prefix(Self.datagramLimit))
    }
    do throws(DeliveryFailure) { return try channel.deliver(framed, &refused, endsLines: false) } catch {
      reset()
      throw error
    }
  }

  public func reset() { channel = nil }
}

/// A connected socket. Owns its descriptor.
private final class Channel {
  let isStream: Bool
  private let descriptor: Int32
  /// How long a receiver may take nothing.
  private static let patienceMilliseconds: Int32 = 5_000

  init(_ descriptor: Int32, isStream: Bool) {
    self.descriptor = descriptor
    self.isStream = isStream
  }

  deinit { close(descriptor) }

  /// Sends lines, each whole. One that was cut short on a stream counts as not delivered, and comes again on the next connection, where the
  /// receiver finds a beginning of it only on the old one.
  func deliver(
    _ lines: [[UInt8]], _ refused: inout UInt64, endsLines: Bool = true
  ) throws(DeliveryFailure) -> Int {
    if isStream, !isOpen { throw DeliveryFailure("the receiver hung up") }
    for (index, line) in lines.enumerated() {
      var bytes = line
      if isStream, endsLines { bytes.append(0x0A) }
      var sent = 0
      while sent < bytes.count || bytes.isEmpty {
        // SAFETY: the buffer is valid for its count during the call, which only reads it.
        let count = unsafe bytes[sent...].withUnsafeBytes {
          unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        if count >= 0, !isStream || bytes.isEmpty { break }
        if count >= 0 {
          sent += count
          continue
        }
        let number = errno
        if number == EINTR { continue }
        if number == EMSGSIZE {
          refused &+= 1
          break
        }
        guard number == EAGAIN || number == ENOBUFS, waitForRoom() else {
          throw DeliveryFailure("sending failed: \(describeError(number))", delivered: index)
        }
      }
    }
    return lines.count
  }

  private var isOpen: Bool {
    var waited = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said.
    guard unsafe poll(&waited, 1, 0) > 0 else { return true }
    var byte: UInt8 = 0
    // SAFETY: one byte, as is said. Receivers of events say nothing; what they say all the same is passed over.
    return unsafe recv(descriptor, &byte, 1, Int32(MSG_DONTWAIT)) > 0
  }

  private func waitForRoom() -> Bool {
    var waited = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    // SAFETY: one structure, as is said.
    return unsafe poll(&waited, 1, Self.patienceMilliseconds) > 0 && waited.revents & Int16(POLLERR | POLLHUP) == 0
  }
}
