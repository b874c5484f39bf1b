// The integrity monitor over an image: how long a crawl takes and what memory, and what a request costs that touches
// nothing protected, with allocations.
//
//   mke2fs -q -t ext4 -d TREE image 1200M
//   swift run -c release integrity image
import CBaseline
import Glibc
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// The most memory this process had, in KiB.
func peakMemory() -> Int {
  var usage = rusage()
  // SAFETY: `usage` lives across the call, which fills it.
  guard unsafe getrusage(CInt(RUSAGE_SELF.rawValue), &usage) == 0 else { return 0 }
  return usage.ru_maxrss
}

func crawl(_ reader: any DiskReader) throws(IntegrityError) {
  for round in 1...3 {
    let start = ContinuousClock.now
    let fileSystem = try ExtFileSystem(reader)
    var files = 0
    var damage = DamageLog()
    var attributes = 0
    let found = fileSystem.walk { listing in
      files += 1
      attributes += fileSystem.attributes(of: listing, damage: &damage).count
    }
    print(
      "crawl \(round): \(files) files, \(found.count) damages in \(ContinuousClock.now - start), peak \(peakMemory()) KiB"
    )
  }
}

func misses(_ reader: any DiskReader) throws(IntegrityError) {
  let policy = try ProtectionPolicy([.init("/**/file-0000*"), .init("/etc/**")])
  let incarnation = Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1))
  var monitor = IntegrityMonitor(
    reader, configuration: .init(incarnation: incarnation, disk: "xvda", policy: policy, hashKey: (1, 2)), at: .zero)
  print("protected: \(monitor.protectedFiles.count) files")
  var sequence: UInt64 = 0
  for size in [4096, 131_072, 1 << 20] {
    let data = [UInt8](repeating: 0x5A, count: size)
    // The end of the disk, where a new file system has nothing.
    let places = (0..<64).map { reader.byteCount - UInt64((64 - $0) * size) }
    func pass(_ rounds: Int) {
      data.withRawSpan { span in
        for round in 0..<rounds {
          let request = BlockRequest(
            sequence: sequence, timestamp: Timestamp(nanoseconds: Int64(sequence)), operation: .write,
            offset: places[round & 63], length: UInt64(size))
          sequence += 1
          baseline_keep(UInt64(monitor.observe(request, data: span).rawValue))
        }
      }
    }
    pass(10_000)
    let before = baseline_allocation_count()
    let hits = monitor.statistics.hits
    let start = ContinuousClock.now
    pass(100_000)
    let time = ContinuousClock.now - start
    print(
      "miss of \(size) bytes: \(time / 100_000) a request, \(baseline_allocation_count() - before) allocations in 100000, "
        + "\(monitor.statistics.hits - hits) hits")
  }
}

guard CommandLine.arguments.count == 2 else {
  print("usage: integrity IMAGE")
  exit(64)
}
do throws(IntegrityError) {
  let reader = try FileDiskReader(path: CommandLine.arguments[1])
  try crawl(reader)
  try misses(reader)
} catch {
  print(error.message)
  exit(65)
}
