import Testing
import VMFenceCapture
import VMFenceConformance
import VMFenceCore

@Suite("pcapng files")
struct PcapngFileTests {
  /// Two sections of different byte order; interfaces of different link type and resolution.
  static func twoSections() -> (bytes: [UInt8], expected: [Delivery]) {
    var capture = CaptureBytes()
    capture.section()
    capture.interface(1, name: "vif1.0", resolution: 9)
    capture.interface(101, name: "tun0")
    capture.enhancedPacket([1, 2, 3], ticks: 5_000_000_001) {
      $0.option(1, Array("a comment".utf8))
      $0.u16(2)
      $0.u16(4)
      $0.u32(1 | 1 << 9)
    }
    capture.enhancedPacket([0x45, 0], interface: 1, ticks: 7_000_000, original: 1_500) {
      $0.u16(2)
      $0.u16(4)
      $0.u32(2 | 1 << 10)
    }
    var second = CaptureBytes(isBigEndian: true)
    second.section()
    second.interface(276, name: "any", resolution: 0x8A, offset: 100)
    second.block(0x0000_0BAD) { $0.u32(1) }
    second.enhancedPacket([9, 9, 9, 9], ticks: 1_024 + 512)
    return (
      capture.bytes + second.bytes,
      [
        delivery([1, 2, 3], nanoseconds: 5_000_000_001, direction: .fromGuest, checksums: .notYetComputed),
        delivery(
          [0x45, 0], nanoseconds: 7_000_000_000, port: 1, direction: .toGuest, checksums: .valid, linkType: .raw,
          original: 1_500),
        delivery([9, 9, 9, 9], nanoseconds: 101_500_000_000, linkType: .linuxSLL2),
      ]
    )
  }

  @Test("with sections of both byte orders and interfaces of different link types are read")
  func sections() throws {
    let (bytes, expected) = Self.twoSections()
    let run = try PacketSourceConformance(expected: expected).check { try CaptureFile.open(bytes: bytes) }
    #expect(run.counters.skipped == 1)
  }

  @Test("give the same frames wherever a block that is read ends", arguments: [1, 5, 12, 28, 33, 64])
  func readSizes(readSize: Int) throws {
    let (bytes, expected) = Self.twoSections()
    #expect(try readAll(bytes, readSize: readSize) == expected)
  }

  @Test("name the interfaces of the first section as soon as they are open")
  func interfaces() throws {
    let file = try CaptureFile.open(bytes: Self.twoSections().bytes)
    #expect(
      file.interfaces == [
        CaptureInterface(index: 0, name: "vif1.0", linkType: .ethernet, timestampResolution: .nanoseconds),
        CaptureInterface(index: 1, name: "tun0", linkType: .raw),
      ])
  }

  @Test("are mapped to ports as the caller says; an interface left out is counted as skipped")
  func mapping() throws {
    let mapping = CapturePortMapping { $0.name == "tun0" ? PortID(42) : nil }
    var file = try CaptureFile.open(bytes: Self.twoSections().bytes, ports: mapping)
    var ports: [PortID] = []
    #expect(try file.nextBatch(limit: 9) { metadata, _ in ports.append(metadata.port) }.isAtEnd)
    #expect(ports == [PortID(42)])
    #expect(file.counters.skipped == 3)
  }

  @Test("of an interface that is left out may have a link type that is not read")
  func unreadableLinkType() throws {
    var capture = CaptureBytes()
    capture.section()
    capture.interface(1)
    capture.interface(220)
    capture.enhancedPacket([1], ticks: 1)
    capture.enhancedPacket([2], interface: 1, ticks: 2)
    let (error, frames) = failure(capture.bytes)
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("LINKTYPE_USB_LINUX_MMAPPED") == true)
    #expect(frames == 1)
    var file = try CaptureFile.open(bytes: capture.bytes, ports: CapturePortMapping { $0.index == 0 ? PortID(0) : nil })
    #expect(try file.nextBatch(limit: 9) { _, _ in } == BatchOutcome(frames: 1, isAtEnd: true))
  }

  @Test("with simple and obsolete packet blocks are read, and the drops that they tell are counted")
  func otherPackets() throws {
    var capture = CaptureBytes()
    capture.section()
    capture.interface(1, snapshotLength: 3)
    capture.block(2) {
      $0.u16(0)
      $0.u16(17)
      $0.u32(0)
      $0.u32(3_000_000)
      $0.u32(2)
      $0.u32(2)
      $0.padded([1, 2])
    }
    capture.block(3) {
      $0.u32(5)
      $0.padded([1, 2, 3])
    }
    capture.enhancedPacket([4], ticks: 4_000_000) {
      $0.u16(4)
      $0.u16(8)
      $0.u64(3)
    }
    let bytes = capture.bytes
    let expected = [
      delivery([1, 2], nanoseconds: 3_000_000_000),
      delivery([1, 2, 3], nanoseconds: 3_000_000_000, original: 5),
      delivery([4], nanoseconds: 4_000_000_000),
    ]
    let run = try PacketSourceConformance(expected: expected).check { try CaptureFile.open(bytes: bytes) }
    #expect(run.counters.droppedByKernel == 20)
    #expect(run.counters.truncated == 1)
  }

  @Test("with a large block of an unknown type are read past it")
  func largeUnknownBlock() throws {
    var capture = CaptureBytes()
    capture.section()
    capture.interface()
    capture.block(0x0BAD) { $0.bytes = .init(repeating: 1, count: 3 << 20) }
    capture.enhancedPacket([1], ticks: 1)
    #expect(try readAll(capture.bytes).count == 1)
  }

  @Test(
    "have times in any unit, saturating",
    arguments: [
      (UInt8(6), nil, UInt64(1_500_000), Int64(1_500_000_000)),
      (9, nil, 17, 17), (0, nil, 3, 3_000_000_000), (12, nil, 5_999, 5), (28, nil, 10_000_000_000_000_000_000, 1),
      (29, nil, .max, 0), (127, nil, .max, 0),
      (6, nil, .max, .max), (0, nil, .max, .max), (9, nil, .max, .max),
      (0x80, nil, 3, 3_000_000_000), (0x80, nil, .max, .max), (0x81, nil, 3, 1_500_000_000),
      (0xBF, nil, 1 << 62, 500_000_000),
      (0xC0, nil, 1 << 63, 500_000_000), (0xC1, nil, 1 << 63, 250_000_000), (0xFF, nil, .max, 0),
      (6, 10, 1, 10_000_001_000), (6, -10, 1, -9_999_999_000), (9, .max, .max, .max), (6, .min, 0, .min),
    ] as [(UInt8, Int64?, UInt64, Int64)])
  func times(resolution: UInt8, offset: Int64?, ticks: UInt64, nanoseconds: Int64) throws {
    var capture = CaptureBytes()
    capture.section()
    capture.interface(resolution: resolution, offset: offset)
    capture.enhancedPacket([1], ticks: ticks)
    #expect(try readAll(capture.bytes).map(\.metadata.timestamp.nanoseconds) == [nanoseconds])
  }
}

@Suite("Damaged pcapng files")
struct DamagedPcapngTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var code: PacketSourceError.Code
    var says: String
    var build: @Sendable (inout CaptureBytes) -> Void
    var testDescription: String { name }
  }

  static let cases: [Case] = [
    Case(name: "a block of length 0", code: .corrupt, says: "0 bytes") {
      $0.u32(6)
      $0.u32(0)
      $0.u32(0)
    },
    Case(name: "a block of odd length", code: .corrupt, says: "multiple of 4") {
      $0.u32(6)
      $0.u32(33)
      $0.u64(0)
    },
    Case(name: "a packet block too short for its header", code: .corrupt, says: "at least 32") {
      $0.block(6) { $0.u64(0) }
    },
    Case(name: "an enormous packet block", code: .corrupt, says: "1048576") {
      $0.u32(6)
      $0.u32(0xFFFF_FFF0)
      $0.u64(0)
    },
    Case(name: "an enormous interface block", code: .corrupt, says: "1048576") {
      $0.u32(1)
      $0.u32(0x7FFF_FFF0)
      $0.u64(0)
    },
    Case(name: "an enormous block of an unknown type that is not there", code: .truncated, says: "4294967280") {
      $0.u32(77)
      $0.u32(0xFFFF_FFF0)
      $0.u64(0)
    },
    Case(name: "a frame longer than its block", code: .corrupt, says: "400 bytes in a block") {
      $0.block(6) {
        for number: UInt32 in [0, 0, 0, 400, 400, 7] { $0.u32(number) }
      }
    },
    Case(name: "a frame of 4 GiB", code: .corrupt, says: "4294967295 bytes") {
      $0.block(6) {
        for number: UInt32 in [0, 0, 0, .max, .max, 7] { $0.u32(number) }
      }
    },
    Case(name: "a simple packet longer than its block", code: .corrupt, says: "9 bytes") {
      $0.block(3) {
        $0.u32(9)
        $0.u32(0)
      }
    },
    Case(name: "a frame of an interface that is not described", code: .corrupt, says: "interface 1") {
      $0.enhancedPacket([1], interface: 1, ticks: 0)
    },
    Case(name: "lengths that disagree", code: .corrupt, says: "disagree") {
      $0.enhancedPacket([1], ticks: 0)
      $0.bytes[$0.bytes.count - 4] ^= 4
    },
    Case(name: "lengths that disagree in an unknown block", code: .corrupt, says: "disagree") {
      $0.block(99) { $0.u32(0) }
      $0.bytes[$0.bytes.count - 4] ^= 4
    },
    Case(name: "an option beyond its block", code: .corrupt, says: "option 1") {
      $0.enhancedPacket([1], ticks: 0) {
        $0.u16(1)
        $0.u16(200)
      }
    },
    Case(name: "a section of version 2", code: .unsupported, says: "2.0") { $0.section(version: (2, 0)) },
    Case(name: "a section without byte-order magic", code: .corrupt, says: "byte-order") {
      $0.block(0x0A0D_0D0A) { $0.u64(0) }
    },
    Case(name: "too many interfaces", code: .corrupt, says: "4096") {
      for _ in 0..<4_096 { $0.interface() }
    },
    Case(name: "a header cut off", code: .truncated, says: "after 4 of") { $0.u32(6) },
  ]

  @Test("give all frames before the damage, then an error with the place", arguments: cases, [false, true])
  func damaged(_ test: Case, isBigEndian: Bool) throws {
    var capture = CaptureBytes(isBigEndian: isBigEndian)
    capture.section()
    capture.interface()
    capture.enhancedPacket([1, 2, 3, 4], ticks: 1)
    let start = capture.bytes.count
    test.build(&capture)
    let (found, frames) = failure(capture.bytes)
    let error = try #require(found)
    #expect(error.code == test.code)
    #expect(error.message.contains(test.says), "\(error)")
    #expect(frames == 1)
    if test.name != "too many interfaces" {
      #expect(error.message.hasPrefix("block 4 at byte offset \(start): "), "\(error)")
    }
    let bytes = capture.bytes
    try PacketSourceConformance(expectedFailure: test.code).check { try CaptureFile.open(bytes: bytes) }
  }

  @Test("cut off anywhere never do worse than that")
  func cutAnywhere() {
    let (bytes, expected) = PcapngFileTests.twoSections()
    for length in 0..<bytes.count {
      let (error, frames) = failure(Array(bytes.prefix(length)), readSize: 16)
      #expect(frames <= expected.count)
      if let error { #expect([.truncated, .notACapture].contains(error.code)) }
    }
  }

  @Test("with any byte changed never do worse than an error")
  func changedAnywhere() {
    let (bytes, _) = PcapngFileTests.twoSections()
    for index in bytes.indices {
      for value: UInt8 in [0, 1, 0x7F, 0x80, 0xFF] {
        var damaged = bytes
        damaged[index] = value
        #expect(failure(damaged, readSize: 64).frames <= 3)
      }
    }
  }
}
