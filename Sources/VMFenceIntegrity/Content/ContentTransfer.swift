internal import VMFenceCore

/// The frames by which contents come to a rule engine: an HTTP/1.1 transfer of a file over TCP, in which engines find files.
/// The file's path is what is asked for, its bytes are the body of the answer.
struct ContentTransfer {
  /// Of a body in one segment, in bytes: as network offloads hand them over.
  private static let segmentBytes = 32 << 10
  private static let synchronize: UInt8 = 0x02
  private static let acknowledge: UInt8 = 0x10
  private static let push: UInt8 = 0x18
  private static let finish: UInt8 = 0x11

  let contents: FileContents
  /// The client's; another one makes it another connection.
  let port: UInt16
  private var next: (client: UInt32, server: UInt32) = (1000, 5000)

  init(_ contents: FileContents, port: UInt16) {
    self.contents = contents
    self.port = port
  }

  /// Shows every frame, in order.
  mutating func forEach(_ body: (FrameMetadata, RawSpan) -> Void) {
    send(Self.synchronize, fromClient: true, [], body)
    send(Self.synchronize | Self.acknowledge, fromClient: false, [], body)
    send(Self.acknowledge, fromClient: true, [], body)
    let host = contents.disk.utf8.filter { $0.isUnreserved }
    send(
      Self.push, fromClient: true,
      Array("GET ".utf8) + Self.escaped(contents.path) + Array(" HTTP/1.1\r\nHost: ".utf8) + host
        + Array("\r\n\r\n".utf8), body)
    send(Self.acknowledge, fromClient: false, [], body)
    let head =
      "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: \(contents.bytes.count)\r\n\r\n"
    send(Self.push, fromClient: false, Array(head.utf8), body)
    var position = 0
    while position < contents.bytes.count {
      let end = min(contents.bytes.count, position + Self.segmentBytes)
      send(Self.push, fromClient: false, Array(contents.bytes[position..<end]), body)
      send(Self.acknowledge, fromClient: true, [], body)
      position = end
    }
    send(Self.finish, fromClient: false, [], body)
    send(Self.finish, fromClient: true, [], body)
    send(Self.acknowledge, fromClient: false, [], body)
  }

  /// A path as a request line has it: what is not unreserved there (RFC 3986, 2.3) is escaped.
  private static func escaped(_ path: [UInt8]) -> [UInt8] {
    path.prefix(4096).flatMap { byte in
      byte.isUnreserved || byte == 0x2F ? [byte] : Array("%\(byte.hexadecimal(width: 2))".utf8)
    }
  }

  /// Ethernet (14 bytes), IPv4 (20), TCP (20), and the payload.
  private mutating func send(
    _ flags: UInt8, fromClient: Bool, _ payload: [UInt8], _ body: (FrameMetadata, RawSpan) -> Void
  ) {
    let (client, server): ([UInt8], [UInt8]) = ([192, 0, 2, 1], [198, 51, 100, 1])
    let own = fromClient ? next.client : next.server
    let acknowledged = flags & Self.acknowledge == 0 ? 0 : fromClient ? next.server : next.client
    var header: [UInt8] = [0x45, 0] + Self.bytes(UInt32(40 + payload.count)).suffix(2)
    header += [0, 0, 0x40, 0, 64, 6, 0, 0]
    header += fromClient ? client + server : server + client
    let sum = Self.checksum(header)
    header[10] = UInt8(sum >> 8)
    header[11] = UInt8(truncatingIfNeeded: sum)
    var frame: [UInt8] = fromClient ? [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1] : [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]
    frame += [0x08, 0x00] + header
    let ports: [UInt8] = Array(Self.bytes(UInt32(port)).suffix(2)) + [0, 80]
    frame += fromClient ? ports : Array(ports[2...] + ports[..<2])
    frame += Self.bytes(own) + Self.bytes(acknowledged) + [0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0] + payload
    let advance = UInt32(payload.count) + (flags & 0x03 != 0 ? 1 : 0)
    if fromClient { next.client &+= advance } else { next.server &+= advance }
    let metadata = FrameMetadata(
      timestamp: contents.time, port: PortID(0), direction: fromClient ? .fromGuest : .toGuest, checksums: .valid,
      originalLength: UInt32(frame.count))
    frame.withRawSpan { body(metadata, $0) }
  }

  private static func bytes(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * $0)) }
  }

  /// The header's checksum (RFC 1071).
  private static func checksum(_ header: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: header.count, by: 2) {
      sum += UInt32(header[index]) << 8 | UInt32(header[index + 1])
    }
    while sum > 0xFFFF { sum = sum & 0xFFFF + sum >> 16 }
    return ~UInt16(sum)
  }
}

extension UInt8 {
  /// Letters, digits, and `-._~`.
  fileprivate var isUnreserved: Bool {
    switch self {
    case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, 0x2D, 0x2E, 0x5F, 0x7E: true
    default: false
    }
  }
}
