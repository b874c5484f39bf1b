extension [UInt8] {
  /// A number, its highest byte first: in network order.
  @inlinable
  package mutating func append(big value: some FixedWidthInteger) {
    for shift in stride(from: value.bitWidth - 8, through: 0, by: -8) {
      append(UInt8(truncatingIfNeeded: value >> shift))
    }
  }

  /// A number, its lowest byte first.
  @inlinable
  package mutating func append(little value: some FixedWidthInteger) {
    for shift in stride(from: 0, to: value.bitWidth, by: 8) { append(UInt8(truncatingIfNeeded: value >> shift)) }
  }

  /// A number in the machine's own order, as netlink's headers have them.
  @inlinable
  package mutating func append(host value: some FixedWidthInteger) {
    if UInt16(littleEndian: 1) == 1 { append(little: value) } else { append(big: value) }
  }
}
