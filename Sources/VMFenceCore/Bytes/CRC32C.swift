/// The CRC-32C (Castagnoli) of RFC 3720 §12.1: polynomial 0x1EDC6F41, reflected, all ones before and after.
package struct CRC32C: Sendable {
  /// Tables for eight bytes at a step: `tables[256 * n + b]` is the remainder of byte `b` followed by `n` zeroes.
  private static let tables: [UInt32] = {
    var result = (0..<256).map { byte in
      (0..<8).reduce(UInt32(byte)) { value, _ in value >> 1 ^ (value & 1 == 1 ? 0x82F6_3B78 : 0) }
    }
    for index in 256..<8 * 256 {
      let before = result[index - 256]
      result.append(before >> 8 ^ result[Int(before & 0xFF)])
    }
    return result
  }()

  /// The remainder so far, before the last inversion: what file systems store and go on from.
  package private(set) var state: UInt32

  package init(state: UInt32 = .max) { self.state = state }

  package mutating func update(_ bytes: some Sequence<UInt8>) {
    for byte in bytes { state = state >> 8 ^ Self.tables[Int(UInt8(truncatingIfNeeded: state) ^ byte)] }
  }

  package mutating func update(_ bytes: RawSpan) {
    let tables = Self.tables
    var crc = state
    var offset = 0
    while offset &+ 8 <= bytes.byteCount {
      let low = bytes.u32le(offset) ^ crc
      let high = bytes.u32le(offset &+ 4)
      crc =
        tables[1792 &+ Int(low & 0xFF)] ^ tables[1536 &+ Int(low >> 8 & 0xFF)]
        ^ tables[1280 &+ Int(low >> 16 & 0xFF)] ^ tables[1024 &+ Int(low >> 24)]
        ^ tables[768 &+ Int(high & 0xFF)] ^ tables[512 &+ Int(high >> 8 & 0xFF)]
        ^ tables[256 &+ Int(high >> 16 & 0xFF)] ^ tables[Int(high >> 24)]
      offset &+= 8
    }
    while offset < bytes.byteCount {
      crc = crc >> 8 ^ tables[Int(UInt8(truncatingIfNeeded: crc) ^ bytes.u8(offset))]
      offset &+= 1
    }
    state = crc
  }

  /// Adds a number in little-endian order.
  package mutating func update(littleEndian value: UInt32) {
    for shift in [0, 8, 16, 24] as [UInt32] {
      state =
        state >> 8 ^ Self.tables[Int(UInt8(truncatingIfNeeded: state) ^ UInt8(truncatingIfNeeded: value >> shift))]
    }
  }

  /// Adds `count` zero bytes.
  package mutating func update(zeroes count: Int) {
    for _ in 0..<count { state = state >> 8 ^ Self.tables[Int(UInt8(truncatingIfNeeded: state))] }
  }

  package var value: UInt32 { ~state }

  package static func checksum(_ bytes: some Sequence<UInt8>) -> UInt32 {
    var crc = CRC32C()
    crc.update(bytes)
    return crc.value
  }
}

/// The CRC-16 that ext4 without metadata_csum has in its group descriptors: polynomial 0x8005, reflected
/// (`crc16` in `lib/crc16.c`).
package struct CRC16: Sendable {
  private static let table: [UInt16] = (0..<256).map { byte in
    (0..<8).reduce(UInt16(byte)) { value, _ in value >> 1 ^ (value & 1 == 1 ? 0xA001 : 0) }
  }

  package private(set) var state: UInt16

  package init(state: UInt16 = .max) { self.state = state }

  package mutating func update(_ bytes: RawSpan) {
    for offset in 0..<bytes.byteCount {
      state = state >> 8 ^ Self.table[Int(UInt8(truncatingIfNeeded: state) ^ bytes.u8(offset))]
    }
  }
}

/// The CRC-32 of the first journal checksums (`crc32_be` of Linux): polynomial 0x04C11DB7, not reflected, all ones
/// before, nothing after.
package struct CRC32BigEndian: Sendable {
  private static let table: [UInt32] = (0..<256).map { byte in
    (0..<8).reduce(UInt32(byte) << 24) { value, _ in value << 1 ^ (value & 0x8000_0000 != 0 ? 0x04C1_1DB7 : 0) }
  }

  package private(set) var state: UInt32 = .max

  package init() {}

  package mutating func update(_ bytes: RawSpan) {
    let table = Self.table
    var crc = state
    for offset in 0..<bytes.byteCount {
      crc = crc << 8 ^ table[Int(UInt8(truncatingIfNeeded: crc >> 24) ^ bytes.u8(offset))]
    }
    state = crc
  }
}

/// The CRC-32 of ISO 3309, as in GUID partition tables: polynomial 0x04C11DB7, reflected, all ones before and after.
package struct CRC32: Sendable {
  private static let table: [UInt32] = (0..<256).map { byte in
    (0..<8).reduce(UInt32(byte)) { value, _ in value >> 1 ^ (value & 1 == 1 ? 0xEDB8_8320 : 0) }
  }

  private var state = UInt32.max

  package init() {}

  package mutating func update(_ bytes: RawSpan) {
    let table = Self.table
    var crc = state
    for offset in 0..<bytes.byteCount { crc = crc >> 8 ^ table[Int(UInt8(truncatingIfNeeded: crc) ^ bytes.u8(offset))] }
    state = crc
  }

  package mutating func update(zeroes count: Int) {
    for _ in 0..<count { state = state >> 8 ^ Self.table[Int(UInt8(truncatingIfNeeded: state))] }
  }

  package var value: UInt32 { ~state }
}
