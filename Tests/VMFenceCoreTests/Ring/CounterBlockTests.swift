import Glibc
import TestSupport
import Testing
import ToyEngine
import VMFenceCore

/// What an inspector counts leaves its detector, and is shown whatever the detector does.
@Suite("Counters of a detector")
struct CounterBlockTests {
  private let backend = ThreadDetectorBackend<ToyInspector>()
  private let small = DetectorChannelConfiguration(packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 1500)

  /// Waits until the detector has shown `values`: it does so after it has answered.
  private func awaited(_ values: [UInt64], of channel: DetectorChannel) -> [UInt64] {
    var shown: [UInt64] = []
    _ = comesTrue {
      shown = channel.inspectorCounters(ToyRules.inspectorCounters)
      return shown == values
    }
    return shown
  }

  @Test("arrive once the detector has nothing to do, add up over detectors, and are kept when the last is gone")
  func arrive() throws {
    let channel = try backend.makeChannel(small)
    #expect(channel.inspectorCounters(ToyRules.inspectorCounters) == [0, 0])
    for (round, length) in [(1, 3), (2, 30)] as [(UInt64, Int)] {
      let handle = try backend.launch(
        rules: ToyRules([]), channel: channel, configuration: InspectorConfiguration())
      for _ in 0..<20 { #expect(channel.send([UInt8](repeating: 0, count: length)) != .full) }
      channel.publish()
      #expect(try channel.collectAll().count == 20)
      #expect(awaited([round * 20, UInt64(length)], of: channel) == [round * 20, UInt64(length)])
      handle.kill()
      #expect(channel.inspectorCounters(ToyRules.inspectorCounters) == [round * 20, UInt64(length)])
    }
  }

  @Test("arrive while packets keep coming, too")
  func underLoad() throws {
    let channel = try backend.makeChannel(small)
    let handle = try backend.launch(rules: ToyRules([]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    var sent = 0
    while sent < 10_000 {
      if channel.send([1]) == .full {
        channel.publish()
        _ = channel.waitForVerdicts(upTo: .seconds(5))
        _ = try channel.collectAnswers()
      } else {
        sent += 1
      }
    }
    channel.publish()
    _ = try channel.collectAll()
    #expect(awaited([10_000, 1], of: channel) == [10_000, 1])
  }

  private let counters = [
    InspectorCounter("a", "A total."), InspectorCounter("b", .limit, "A limit."),
    InspectorCounter("c", .level, "A level."),
  ]

  @Test("of a hostile detector never go back, never trap, and are shown as given where they may be anything")
  func hostile() throws {
    let channel = try backend.makeChannel(small)
    _ = try DetectorSocket.pair().attach(to: channel, ruleCount: 1)
    let forger = Forger(channel)
    func show(_ values: [UInt64]) {
      for (index, value) in values.enumerated() { forger.set(value, at: RingLayout.counters + index * 8) }
    }
    show([5, 7, 9])
    #expect(channel.inspectorCounters(counters) == [5, 7, 9])
    show([4, 0, 1])
    #expect(channel.inspectorCounters(counters) == [5, 7, 1])
    show([.max, .max, .max])
    #expect(channel.inspectorCounters(counters) == [.max, .max, .max])
    channel.detach()
    _ = try DetectorSocket.pair().attach(to: channel, ruleCount: 1)
    #expect(channel.inspectorCounters(counters) == [.max, .max, 0], "totals stay, levels begin anew")
    show([1, .max, 3])
    #expect(channel.inspectorCounters(counters) == [.max, .max, 3])
  }

  @Test("beyond the block's end are neither written nor read")
  func beyond() throws {
    let channel = try backend.makeChannel(small)
    let many = (0..<200).map { InspectorCounter("c\($0)", "One of many.") }
    #expect(channel.inspectorCounters(many).count == RingLayout.counterCapacity)
    let writer = CounterBlockWriter(up: channel.up)
    for index in [-1, RingLayout.counterCapacity, .max] { writer.write(9, at: index) }
    #expect(channel.inspectorCounters(many).allSatisfy { $0 == 0 })
    writer.write(9, at: RingLayout.counterCapacity - 1)
    #expect(channel.inspectorCounters(many).last == 9)
  }
}
