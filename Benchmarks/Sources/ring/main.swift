import RingBenchmark
import VMFenceCore
import VMFenceProcess

// `ring [MILLIONS]`: how fast frames get through the ring to a detector process and their verdicts back, beside a
// memcpy of the same bytes. Ratios matter, not figures: run it on a quiet machine.
let millions = CommandLine.arguments.dropFirst().first.flatMap { Int($0) } ?? 10
let frames = Frames()
let baseline = measureCopy(frames, packets: millions * 1_000_000)
print("frames: \(frames.count), \(frames.meanLength) bytes on average; \(millions) million packets a run")
print("memcpy of the same bytes: \(baseline.summary)")
for work in Work.allCases {
  for dispatches in [false, true] {
    let run = try RingRun(work: work)
    let result = try run.throughput(frames, packets: millions * 1_000_000, dispatches: dispatches)
    let name = "\(dispatches ? "dispatch + " : "")ring\(work == .decode ? " + decode" : "")"
    print("\(name): \(result.summary), \(result.ratio(to: baseline)) of memcpy; \(result.allocations) allocations")
    run.end()
  }
}
for rate in [10_000, 100_000, 1_000_000] {
  let run = try RingRun(work: .decode)
  print(
    "round trip at \(rate) packets/s: \(try run.latency(frames, packets: min(rate * 2, 1_000_000), perSecond: rate))")
  run.end()
}
