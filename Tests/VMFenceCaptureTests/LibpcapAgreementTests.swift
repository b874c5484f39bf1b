import CPcap
import Foundation
import Testing
import VMFenceCapture
import VMFenceConformance
import VMFenceCore

/// libpcap as the judge: the same frames from the same file, for files that libpcap reads at all.
@Suite("Capture files agree with libpcap")
struct LibpcapAgreementTests {
  /// Where captures of others lie beside the project, if they do.
  static let captures: [String] = {
    let folder = ProcessInfo.processInfo.environment["VMFENCE_CONFORMANCE"] ?? "../shared/conformance"
    let files = FileManager.default.enumerator(atPath: folder)?.compactMap { $0 as? String } ?? []
    return files.filter { $0.hasSuffix(".pcap") || $0.hasSuffix(".pcapng") }.map { "\(folder)/\($0)" }.sorted()
  }()

  @Test(
    "on captures of all kinds", .enabled(if: !captures.isEmpty, "needs ../shared/conformance or VMFENCE_CONFORMANCE"))
  func corpus() {
    var compared = 0
    for path in Self.captures {
      guard let theirs = Self.readWithLibpcap(path) else { continue }
      let (ours, error) = Self.readWithOurs(path)
      #expect(ours.count == theirs.frames.count, "\(path)")
      #expect(ours == theirs.frames, "\(path)")
      #expect((error == nil) == theirs.endedWell, "\(path): \(error.map { "\($0)" } ?? "no error")")
      compared += 1
    }
    #expect(compared > 0)
  }

  struct Frame: Equatable {
    var nanoseconds: Int64
    var original: UInt32
    var bytes: [UInt8]
  }

  static func readWithOurs(_ path: String) -> (frames: [Frame], error: PacketSourceError?) {
    var frames: [Frame] = []
    do throws(PacketSourceError) {
      var file = try CaptureFile.open(path: path)
      while try !file.nextBatch(
        limit: 100,
        {
          frames.append(
            Frame(nanoseconds: $0.timestamp.nanoseconds, original: $0.originalLength, bytes: $1.copiedBytes()))
        }
      ).isAtEnd {}
      return (frames, nil)
    } catch {
      return (frames, error)
    }
  }

  /// nil when libpcap does not open the file.
  static func readWithLibpcap(_ path: String) -> (frames: [Frame], endedWell: Bool)? {
    var message = [CChar](repeating: 0, count: Int(PCAP_ERRBUF_SIZE))
    // SAFETY: the error buffer has the size that libpcap asks for.
    guard
      let handle = unsafe pcap_open_offline_with_tstamp_precision(path, UInt32(PCAP_TSTAMP_PRECISION_NANO), &message)
    else { return nil }
    defer { unsafe pcap_close(handle) }
    var frames: [Frame] = []
    while true {
      var header: UnsafeMutablePointer<pcap_pkthdr>?
      var bytes: UnsafePointer<UInt8>?
      // SAFETY: header and bytes are valid until the next call, and copied before it.
      let result = unsafe pcap_next_ex(handle, &header, &bytes)
      guard result == 1, let header = unsafe header?.pointee, let bytes = unsafe bytes else {
        return (frames, result == -2)
      }
      frames.append(
        Frame(
          nanoseconds: Int64(header.ts.tv_sec) * 1_000_000_000 + Int64(header.ts.tv_usec),
          original: max(header.len, header.caplen),
          bytes: unsafe Array(UnsafeBufferPointer(start: bytes, count: Int(header.caplen)))))
    }
  }
}
