// What the host says of this process, and what else has to be asked of it.
import Glibc
import VMFenceCore

/// Seconds of this process, or of those that it waited for, system included.
func processorSeconds(ofChildren: Bool = false) -> Double {
  var usage = rusage()
  // SAFETY: the structure is filled in by the call.
  unsafe _ = getrusage(__rusage_who_t((ofChildren ? RUSAGE_CHILDREN : RUSAGE_SELF).rawValue), &usage)
  func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1_000_000 }
  return seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// How long `gzip -1 -c` of the file takes, in seconds of the wall clock and of the processor; nil when it cannot be run.
func timeGzip(_ path: String) -> (wall: Double, processor: Double)? {
  let text =
    "gzip -1 -c '\(path.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "'\\''"))' >/dev/null"
  let start = ContinuousClock.now
  let processor = processorSeconds(ofChildren: true)
  // SAFETY: a string that ends in zero, for the call.
  guard unsafe system(text) == 0 else { return nil }
  return (
    Double((ContinuousClock.now - start).wholeNanoseconds) / 1e9, processorSeconds(ofChildren: true) - processor
  )
}

func complain(_ text: String) {
  // SAFETY: the bytes are valid for the call.
  unsafe _ = write(2, text + "\n", text.utf8.count + 1)
}

func read(_ path: String) -> [UInt8]? {
  // SAFETY: a stream of the C library, closed once.
  guard let file = unsafe fopen(path, "r") else { return nil }
  defer { unsafe _ = fclose(file) }
  var bytes: [UInt8] = []
  var block = [UInt8](repeating: 0, count: 1 << 16)
  while true {
    let count = unsafe fread(&block, 1, block.count, file)
    if count == 0 { return bytes }
    bytes += block[..<count]
  }
}

/// A line of /proc/self/status, such as `VmHWM`, in KiB.
func memory(_ name: String) -> Int {
  let text = String(decoding: read("/proc/self/status") ?? [], as: UTF8.self)
  let line = text.split(separator: "\n").first { $0.hasPrefix(name + ":") }
  return line?.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap { Int($0) } ?? 0
}

/// Memory of this process alone, in KiB.
func privateMemory() -> Int {
  let text = String(decoding: read("/proc/self/smaps_rollup") ?? [], as: UTF8.self)
  var sum = 0
  for line in text.split(separator: "\n") where line.hasPrefix("Private_") {
    sum += line.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
  }
  return sum
}
