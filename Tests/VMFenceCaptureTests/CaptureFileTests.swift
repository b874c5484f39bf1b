import Testing
import VMFenceCapture
import VMFenceConformance
import VMFenceCore

/// Frames of lengths around every alignment.
private let payloads: [[UInt8]] = (0..<40).map { index in
  (0..<(index * 7 % 61)).map { UInt8(truncatingIfNeeded: $0 &* 3 &+ index) }
}

@Suite("pcap files")
struct PcapFileTests {
  @Test(
    "are read in both byte orders and both units of time",
    arguments: [(UInt32(0xA1B2_C3D4), Int64(1_000)), (0xA1B2_3C4D, 1)], [false, true])
  func orders(format: (magic: UInt32, unit: Int64), isBigEndian: Bool) throws {
    var capture = CaptureBytes(isBigEndian: isBigEndian)
    capture.pcapHeader(magic: format.magic)
    var expected: [Delivery] = []
    for (index, payload) in payloads.enumerated() {
      capture.pcapRecord(payload, seconds: 1_700_000_000, fraction: UInt32(index), original: payload.count + index % 2)
      expected.append(
        delivery(
          payload, nanoseconds: 1_700_000_000_000_000_000 + Int64(index) * format.unit,
          original: payload.count + index % 2))
    }
    let bytes = capture.bytes
    try PacketSourceConformance(expected: expected).check { try CaptureFile.open(bytes: bytes) }
  }

  @Test("give the same frames wherever a block that is read ends", arguments: [1, 2, 3, 16, 17, 40, 100])
  func blocks(readSize: Int) throws {
    var capture = CaptureBytes()
    capture.pcapHeader()
    for payload in payloads { capture.pcapRecord(payload, seconds: 1) }
    #expect(try readAll(capture.bytes, readSize: readSize) == readAll(capture.bytes))
  }

  @Test("deliver all whole frames of a truncated file, then say in which record it ends")
  func truncated() {
    var capture = CaptureBytes()
    capture.pcapHeader()
    capture.pcapRecord([1, 2, 3], seconds: 1)
    capture.pcapRecord([4, 5, 6, 7], seconds: 2)
    let whole = capture.bytes
    // The second record begins at byte 43 and ends at 63.
    for length in 44..<63 {
      let (error, frames) = failure(Array(whole.prefix(length)))
      #expect(error?.code == .truncated)
      #expect(error?.message.hasPrefix("record 2 at byte offset 43: ") == true)
      #expect(frames == 1)
    }
    #expect(failure(Array(whole.prefix(43))) == (nil, 1))
    #expect(failure(Array(whole.prefix(20))).error?.code == .truncated)
  }

  @Test("take a time at the end of their range and a length below the captured one")
  func extremes() throws {
    var capture = CaptureBytes()
    capture.pcapHeader()
    capture.pcapRecord([1, 2, 3], seconds: .max, fraction: .max, original: 1)
    let frame = try #require(try readAll(capture.bytes).first)
    #expect(frame.metadata.originalLength == 3)
    #expect(frame.metadata.timestamp.nanoseconds == 4_294_967_295_000_000_000 + 4_294_967_295_000)
  }

  @Test("of a length that libpcap allows are read, longer ones are corrupt")
  func longest() {
    var capture = CaptureBytes()
    capture.pcapHeader()
    capture.pcapRecord(.init(repeating: 7, count: 262_144), seconds: 1)
    #expect(failure(capture.bytes) == (nil, 1))
    capture.pcapRecord(.init(repeating: 7, count: 262_145), seconds: 1)
    let (error, frames) = failure(capture.bytes)
    #expect(error?.code == .corrupt)
    #expect(frames == 1)
  }

  @Test("of all link types that the decoder knows are read, others are named")
  func linkTypes() throws {
    for linkType: UInt32 in [0, 1, 9, 12, 14, 101, 104, 108, 113, 228, 229, 276] {
      var capture = CaptureBytes()
      capture.pcapHeader(linkType: linkType)
      capture.pcapRecord([1], seconds: 1)
      #expect(try readAll(capture.bytes).map(\.metadata.linkType.rawValue) == [UInt16(linkType)])
    }
    var capture = CaptureBytes()
    capture.pcapHeader(linkType: 127)
    let error = failure(capture.bytes).error
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("LINKTYPE_IEEE802_11_RADIOTAP") == true)
  }
}

@Suite("Files that are not captures")
struct NotACaptureTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var bytes: [UInt8]
    var code: PacketSourceError.Code
    var says: String
    var testDescription: String { name }
  }

  static let cases: [Case] = [
    Case(name: "empty", bytes: [], code: .notACapture, says: "empty"),
    Case(name: "one byte", bytes: [0xD4], code: .notACapture, says: "begins with d4"),
    Case(name: "text", bytes: Array("hello, world, hello".utf8), code: .notACapture, says: "68 65 6c 6c"),
    Case(name: "gzip", bytes: [0x1F, 0x8B, 8, 0, 0, 0], code: .notACapture, says: "gunzip"),
    Case(name: "zstd", bytes: [0x28, 0xB5, 0x2F, 0xFD, 0], code: .notACapture, says: "zstd -d"),
    Case(name: "xz", bytes: [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0], code: .notACapture, says: "xz -dk"),
    Case(
      name: "modified", bytes: [0x34, 0xCD, 0xB2, 0xA1] + .init(repeating: 0, count: 40), code: .unsupported,
      says: "modified pcap"),
    Case(
      name: "modified, swapped", bytes: [0xA1, 0xB2, 0xCD, 0x34] + .init(repeating: 0, count: 40), code: .unsupported,
      says: "modified pcap"),
    Case(name: "header cut off", bytes: [0xD4, 0xC3, 0xB2, 0xA1, 2, 0, 4, 0], code: .truncated, says: "file header"),
    Case(
      name: "version 3", bytes: [0xD4, 0xC3, 0xB2, 0xA1, 3, 0, 4, 0] + .init(repeating: 0, count: 16),
      code: .unsupported,
      says: "version 3.4"),
    Case(name: "section cut off", bytes: [0x0A, 0x0D, 0x0D, 0x0A, 28, 0, 0, 0], code: .truncated, says: "block 1"),
    Case(
      name: "no byte-order magic", bytes: [0x0A, 0x0D, 0x0D, 0x0A, 28, 0, 0, 0] + .init(repeating: 1, count: 20),
      code: .corrupt, says: "byte-order magic"),
  ]

  @Test("are refused with what they are and a remedy", arguments: cases)
  func refused(_ test: Case) throws {
    let error = try #require(failure(test.bytes).error)
    #expect(error.code == test.code)
    #expect(error.description.contains(test.says), "\(error)")
    #expect(!error.remedy.isEmpty)
    #expect(error.place?.file == "test.pcap")
  }

  @Test("or are not there, or are a directory, are errors of input")
  func paths() {
    for path in ["/nonexistent/a.pcap", "/"] {
      do throws(PacketSourceError) {
        _ = try CaptureFile.open(path: path)
        Issue.record("opened \(path)")
      } catch {
        #expect(error.code == .inputOutput)
        #expect(error.place?.file == path)
      }
    }
  }
}
