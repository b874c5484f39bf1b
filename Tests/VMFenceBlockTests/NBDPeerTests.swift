import Foundation
import Testing
import VMFenceBlock
import VMFenceCore

/// What a program of others says, and how it ended.
func runProgram(_ arguments: [String], input: [UInt8] = []) throws -> (status: Int32, output: String) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
  process.arguments = ["PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"] + arguments
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardError = pipe
  process.standardInput = FileHandle.nullDevice
  try process.run()
  let data = try pipe.fileHandleForReading.readToEnd() ?? Data()
  process.waitUntilExit()
  return (process.terminationStatus, String(decoding: data, as: UTF8.self))
}

/// The clients that people use: libnbd's and QEMU's.
@Suite struct NBDPeerTests {
  private func uri(_ disk: ServedDisk) -> String { "nbd+unix:///disk?socket=\(disk.socketPath)" }

  @Test func nbdinfoUnderstandsTheExport() throws {
    let disk = try ServedDisk(byteCount: 8 << 20)
    let (status, output) = try runProgram(["nbdinfo", "--json", uri(disk)])
    #expect(status == 0, "\(output)")
    for expected in [
      "\"export-size\": 8388608", "\"can_fua\": true", "\"can_trim\": true", "\"can_zero\": true",
      "\"can_fast_zero\": true",
      "\"can_cache\": true", "\"can_df\": true", "\"can_multi_conn\": true", "\"base:allocation\"",
      "\"block_size_preferred\": 4096", "\"is_read_only\": false",
    ] { #expect(output.contains(expected), "\(expected) in \(output)") }
    let list = try runProgram(["nbdinfo", "--list", "nbd+unix://?socket=\(disk.socketPath)"])
    #expect(list.status == 0 && list.output.contains("export=\"disk\""), "\(list.output)")
    _ = try disk.stop()
  }

  @Test func nbdcopyCopiesInAndOutWithSeveralConnections() throws {
    let disk = try ServedDisk(byteCount: 16 << 20)
    var content = [UInt8](repeating: 0, count: 16 << 20)
    for index in (0..<content.count) where index >> 20 % 3 == 1 {
      content[index] = UInt8(truncatingIfNeeded: index &* 31 >> 3)
    }
    try disk.folder.write(content, to: "in.img")
    let copyIn = try runProgram(["nbdcopy", "--flush", disk.folder.path + "/in.img", uri(disk)])
    #expect(copyIn.status == 0, "\(copyIn.output)")
    let copyOut = try runProgram(["nbdcopy", uri(disk), disk.folder.path + "/out.img"])
    #expect(copyOut.status == 0, "\(copyOut.output)")
    let map = try runProgram(["nbdinfo", "--map", uri(disk)])
    #expect(map.status == 0 && map.output.contains("hole,zero") && map.output.contains("data"), "\(map.output)")
    #expect(try disk.stop().clients > 3)
    #expect(try disk.image() == content)
    #expect(try [UInt8](Data(contentsOf: URL(fileURLWithPath: disk.folder.path + "/out.img"))) == content)
    let entries = disk.entries
    #expect(entries.map(\.request.sequence) == Array(0..<UInt64(entries.count)), "one order for all connections")
  }

  @Test func qemuReadsWritesZeroesAndDiscards() throws {
    let disk = try ServedDisk(byteCount: 16 << 20)
    let node = "nbd:unix:\(disk.socketPath):exportname=disk"
    let commands = [
      "write -P 0xab 1M 1M", "write -f -P 0xcd 3M 64k", "write -z 1M 64k", "write -z -u 1088k 64k", "discard 4M 1M",
      "aio_write -P 0x11 6M 1M", "aio_write -P 0x12 7M 1M", "aio_flush", "read -P 0x11 6M 1M", "read -P 0 1M 128k",
      "read -P 0xab 1152k 64k", "flush", "alloc 0 1M",
    ]
    let (status, output) = try runProgram(
      ["qemu-io", "-f", "raw", "-t", "writeback", "-d", "unmap", node] + commands.flatMap { ["-c", $0] })
    #expect(status == 0 && !output.contains("failed"), "\(output)")
    let image = disk.folder.path + "/reference.img"
    let convert = try runProgram(["qemu-img", "convert", "-f", "raw", "-O", "raw", node, image])
    #expect(convert.status == 0, "\(convert.output)")
    let compare = try runProgram(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, node])
    #expect(compare.status == 0, "\(compare.output)")
    _ = try disk.stop()
    #expect(disk.entries.contains { $0.request.operation == .discard })
    #expect(try disk.image()[3 << 20..<(3 << 20) + 65_536].allSatisfy { $0 == 0xCD })
  }

  @Test func qemuSeesARefusalAsAnInputOutputError() throws {
    let disk = try ServedDisk { request, _ in request.operation == .write && request.offset == 65_536 ? .deny : .allow }
    let (_, output) = try runProgram(
      ["qemu-io", "-f", "raw", "nbd:unix:\(disk.socketPath):exportname=disk", "-c", "write 64k 4k", "-c", "write 0 4k"])
    #expect(output.contains("Input/output error") && output.contains("wrote 4096/4096 bytes at offset 0"), "\(output)")
    _ = try disk.stop()
  }
}
