import VMFenceCore

/// Community ID version 1: one name for a flow that all tools agree on
/// (<https://github.com/corelight/community-id-spec>).
public enum CommunityID {
  /// - `sourcePort`: for ICMP and ICMPv6 the type; ignored for protocols without ports.
  /// - `destinationPort`: for ICMP and ICMPv6 the code.
  /// - `seed`: tells installations apart that see the same flows; 0 is usual.
  public static func v1(
    source: IPAddress, sourcePort: UInt16, destination: IPAddress, destinationPort: UInt16, ipProtocol: UInt8,
    seed: UInt16 = 0
  ) -> String {
    var (first, second) = (source, destination)
    var ports = (sourcePort, destinationPort)
    var isOneWay = false
    switch ipProtocol {
    case IPProtocol.icmp, IPProtocol.icmpv6:
      let counterpart = ipProtocol == IPProtocol.icmp ? icmpCounterpart(ports.0) : icmpv6Counterpart(ports.0)
      isOneWay = counterpart == nil
      ports.1 = counterpart ?? ports.1
    case IPProtocol.tcp, IPProtocol.udp, IPProtocol.sctp: break
    default: ports = (0, 0)
    }
    if !isOneWay, second < first || first == second && ports.1 < ports.0 {
      swap(&first, &second)
      ports = (ports.1, ports.0)
    }
    var input: [UInt8] = []
    input.append(big: seed)
    input.append(address: first)
    input.append(address: second)
    input += [ipProtocol, 0]
    if hasPorts(ipProtocol) {
      input.append(big: ports.0)
      input.append(big: ports.1)
    }
    return "1:" + String(decoding: Base64.encode(SHA1.digest(of: input)), as: UTF8.self)
  }

  private static func hasPorts(_ ipProtocol: UInt8) -> Bool {
    switch ipProtocol {
    case IPProtocol.icmp, IPProtocol.icmpv6, IPProtocol.tcp, IPProtocol.udp, IPProtocol.sctp: true
    default: false
    }
  }

  /// The type that answers a type (RFC 792, 950, 1256), nil for one-way messages.
  private static func icmpCounterpart(_ type: UInt16) -> UInt16? {
    switch type {
    case 0: 8
    case 8: 0
    case 9: 10
    case 10: 9
    case 13: 14
    case 14: 13
    case 15: 16
    case 16: 15
    case 17: 18
    case 18: 17
    default: nil
    }
  }

  /// RFC 4443, 2710, 4861, 4620, 6275.
  private static func icmpv6Counterpart(_ type: UInt16) -> UInt16? {
    switch type {
    case 128: 129
    case 129: 128
    case 130: 131
    case 131: 130
    case 133: 134
    case 134: 133
    case 135: 136
    case 136: 135
    case 139: 140
    case 140: 139
    case 144: 145
    case 145: 144
    default: nil
    }
  }
}

/// SHA-1 (FIPS 180-4 §6.1), as a name for flows; not fit for security.
package enum SHA1 {
  package static func digest(of message: [UInt8]) -> [UInt8] {
    var state: (UInt32, UInt32, UInt32, UInt32, UInt32) =
      (0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0)
    var padded = message + [0x80]
    padded += Array(repeating: 0, count: (120 - padded.count % 64) % 64)
    let bits = UInt64(message.count) * 8
    for shift in stride(from: 56, through: 0, by: -8) {
      padded.append(UInt8(truncatingIfNeeded: bits >> UInt64(shift)))
    }
    var words = [UInt32](repeating: 0, count: 80)
    for block in stride(from: 0, to: padded.count, by: 64) {
      for index in 0..<16 {
        words[index] = padded[block + index * 4..<block + index * 4 + 4].reduce(0) { $0 << 8 | UInt32($1) }
      }
      for index in 16..<80 {
        let mixed = words[index - 3] ^ words[index - 8] ^ words[index - 14] ^ words[index - 16]
        words[index] = mixed << 1 | mixed >> 31
      }
      compress(words, into: &state)
    }
    return [state.0, state.1, state.2, state.3, state.4].flatMap { word in
      [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: word >> UInt32($0)) }
    }
  }

  private static func compress(_ words: [UInt32], into state: inout (UInt32, UInt32, UInt32, UInt32, UInt32)) {
    var (a, b, c, d, e) = state
    for (index, word) in words.enumerated() {
      let (f, k): (UInt32, UInt32) =
        switch index / 20 {
        case 0: (b & c | ~b & d, 0x5A82_7999)
        case 1: (b ^ c ^ d, 0x6ED9_EBA1)
        case 2: (b & c | b & d | c & d, 0x8F1B_BCDC)
        default: (b ^ c ^ d, 0xCA62_C1D6)
        }
      let next = (a << 5 | a >> 27) &+ f &+ e &+ k &+ word
      (a, b, c, d, e) = (next, a, b << 30 | b >> 2, c, d)
    }
    state = (state.0 &+ a, state.1 &+ b, state.2 &+ c, state.3 &+ d, state.4 &+ e)
  }
}

extension [UInt8] {
  fileprivate mutating func append(address: IPAddress) {
    if address.family == .v4 { return append(big: UInt32(truncatingIfNeeded: address.low)) }
    append(big: address.high)
    append(big: address.low)
  }
}
