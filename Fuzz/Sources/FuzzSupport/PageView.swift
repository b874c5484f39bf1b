internal import Glibc
internal import Synchronization

/// A page of the policy channel as a hostile hand sees it: mapped a second time, from a file that the sides map too.
@safe public final class PageView: @unchecked Sendable {
  private static let byteCount = 4096
  /// For the sides to map.
  public let descriptor: CInt
  // SAFETY: mapped once, never unmapped; every access is atomic.
  private let words: UnsafeMutablePointer<Atomic<UInt64>>

  public init() {
    var name = Array("/tmp/vmfence-page-XXXXXX".utf8CString)
    // SAFETY: the name ends in zero and is written in place.
    descriptor = unsafe mkstemp(&name)
    guard descriptor >= 0, unsafe unlink(name) == 0, ftruncate(descriptor, Self.byteCount) == 0 else {
      fatalError("no file for the page")
    }
    let base = unsafe mmap(nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else { fatalError("the page cannot be mapped") }
    unsafe words = base.bindMemory(to: Atomic<UInt64>.self, capacity: Self.byteCount / 8)
  }

  public func clear() {
    for index in 0..<Self.byteCount / 8 { store(0, at: index) }
  }

  public func load(_ index: Int) -> UInt64 {
    // SAFETY: inside the page.
    unsafe words[index % (Self.byteCount / 8)].load(ordering: .relaxed)
  }

  public func store(_ value: UInt64, at index: Int) {
    // SAFETY: inside the page.
    unsafe words[index % (Self.byteCount / 8)].store(value, ordering: .relaxed)
  }

  /// A message with a right checksum at an index of a lane, and the sender's index behind it (the specification in VMFenceChannel's documentation).
  public func forge(fromGuest: Bool, behind index: UInt64, type: UInt8, sequence: UInt64, payload: [UInt8]) {
    var bytes: [UInt8] = [0x56, 0x4D, 0x46, 0x47, 1, type, 0, 0]
    func append(_ value: UInt64, _ count: Int) {
      for shift in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * shift))) }
    }
    append(UInt64(payload.count), 4)
    append(0, 4)
    append(7, 8)
    append(sequence, 8)
    bytes += payload
    let sum = ~bytes.reduce(~0 as UInt32) { sum, byte in
      (0..<8).reduce(sum ^ UInt32(byte)) { value, _ in value >> 1 ^ (value & 1 == 1 ? 0x82F6_3B78 : 0) }
    }
    for shift in 0..<4 { bytes[12 + shift] = UInt8(truncatingIfNeeded: sum >> UInt32(8 * shift)) }
    while bytes.count % 8 != 0 { bytes.append(0) }
    let lane = fromGuest ? 2176 : 256
    for (number, place) in stride(from: 0, to: bytes.count, by: 8).enumerated() {
      let word = (0..<8).reduce(0 as UInt64) { $0 | UInt64(bytes[place + $1]) << UInt64(8 * $1) }
      store(word, at: (lane + Int((index + UInt64(8 * number)) % 1920)) / 8)
    }
    store(index + UInt64(bytes.count), at: (fromGuest ? 32 : 80) / 8)
  }
}
