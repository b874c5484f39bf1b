internal import Glibc

/// What a host cannot do without, and so never blocks, whatever a policy says: its own addresses, its gateways, its name servers. The addresses of
/// guests are known to the `DomainDirectory`.
public struct HostAddresses: Sendable, Hashable {
  /// Of the interfaces of this host: getifaddrs(3).
  public var own: Set<IPAddress> = []
  /// Next hops of the routing tables: /proc/net/route and /proc/net/ipv6_route.
  public var gateways: Set<IPAddress> = []
  /// resolv.conf(5).
  public var nameServers: Set<IPAddress> = []

  /// Files larger than this are read so far only.
  static let byteLimit = 1 << 20
  /// Of each kind, at the most.
  static let addressLimit = 4096

  public init() {}

  /// As they are now. What cannot be read is left out.
  public static func read(nameServers path: String = "/etc/resolv.conf") -> HostAddresses {
    var result = HostAddresses()
    result.own = ownAddresses()
    result.addRoutes(text(of: "/proc/net/route"))
    result.addIPv6Routes(text(of: "/proc/net/ipv6_route"))
    result.readNameServers(path)
    return result
  }

  /// Reads the name servers anew; the rest stays.
  package mutating func readNameServers(_ path: String = "/etc/resolv.conf") {
    nameServers = []
    addNameServers(Self.text(of: path))
  }

  /// As networks, sorted, for a policy's never-block list.
  public var networks: [IPNetwork] {
    own.union(gateways).union(nameServers).sorted().map { IPNetwork($0) }
  }

  // MARK: Reading

  package mutating func addNameServers(_ text: String) {
    // Also where lines end as on other systems: to Swift, that is one character.
    for line in text.split(whereSeparator: \.isNewline) {
      let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
      guard words.count >= 2, words[0] == "nameserver", nameServers.count < Self.addressLimit else { continue }
      // A zone may follow: fe80::1%eth0.
      if let address = IPAddress(words[1].prefix { $0 != "%" }) { nameServers.insert(address) }
    }
  }

  /// Lines of: interface, destination, gateway (hexadecimal, in the byte order of the machine) …
  package mutating func addRoutes(_ text: String) {
    for line in text.split(separator: "\n").dropFirst() {
      let words = line.split(whereSeparator: { $0 == "\t" || $0 == " " })
      guard words.count >= 3, words[2].utf8.count == 8, let gateway = UInt32(words[2], radix: 16), gateway != 0,
        gateways.count < Self.addressLimit
      else { continue }
      gateways.insert(IPAddress(v4: UInt32(bigEndian: gateway)))
    }
  }

  /// Lines of: destination, its prefix, source, its prefix, next hop (32 hexadecimal digits) …
  package mutating func addIPv6Routes(_ text: String) {
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ")
      guard words.count >= 5, words[4].utf8.count == 32, let high = UInt64(words[4].prefix(16), radix: 16),
        let low = UInt64(words[4].suffix(16), radix: 16), high != 0 || low != 0, gateways.count < Self.addressLimit
      else { continue }
      gateways.insert(IPAddress(v6High: high, low: low))
    }
  }

  private static func text(of path: String) -> String {
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { return "" }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while bytes.count < byteLimit {
      // SAFETY: the buffer is valid for its count during the call.
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) }
      guard count > 0 else { break }
      bytes += buffer[..<count]
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private static func ownAddresses() -> Set<IPAddress> {
    var list: UnsafeMutablePointer<ifaddrs>?
    // SAFETY: getifaddrs(3) sets the pointer to a list that is ours until it is freed, below.
    guard unsafe getifaddrs(&list) == 0 else { return [] }
    defer { unsafe freeifaddrs(list) }
    var result: Set<IPAddress> = []
    var next = unsafe list
    // SAFETY: the entries of the list are valid until it is freed; an address has the size that its family says.
    while let entry = unsafe next, result.count < addressLimit {
      defer { unsafe next = entry.pointee.ifa_next }
      guard let address = unsafe entry.pointee.ifa_addr else { continue }
      let family = Int32(unsafe address.pointee.sa_family)
      if family == AF_INET {
        // SAFETY: of this family, so it is a sockaddr_in.
        let value = unsafe UnsafeRawPointer(address).loadUnaligned(as: sockaddr_in.self)
        result.insert(IPAddress(v4: UInt32(bigEndian: value.sin_addr.s_addr)))
      } else if family == AF_INET6 {
        // SAFETY: of this family, so it is a sockaddr_in6, whose address is 16 bytes from byte 8 on (RFC 3493 §3.3).
        let high = unsafe UnsafeRawPointer(address).loadUnaligned(fromByteOffset: 8, as: UInt64.self)
        let low = unsafe UnsafeRawPointer(address).loadUnaligned(fromByteOffset: 16, as: UInt64.self)
        result.insert(IPAddress(v6High: UInt64(bigEndian: high), low: UInt64(bigEndian: low)))
      }
    }
    return result
  }
}
