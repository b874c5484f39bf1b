/// How much each side of a flow sent lately (`flow.elephant`). Takes memory only where `flow.rate-tracking.bytes` is set: about 200 bytes
/// for each flow that is seen.
struct FlowRates: ~Copyable {
  private static let slotMaximum = 10

  /// What one side sent, by spans of packet time.
  struct Window: BitwiseCopyable {
    /// The number of the newest span since the epoch.
    var newest: Int64 = 0
    var sum: UInt64 = 0
    var bytes = InlineArray<10, UInt64>(repeating: 0)

    mutating func add(_ count: UInt64, span: Int64, of spans: Int64) {
      let passed = span &- newest
      if passed >= spans || newest == 0 {
        self = Window()
        newest = span
      } else if passed > 0 {
        for number in newest + 1...span {
          sum -= bytes[Int(number % spans)]
          bytes[Int(number % spans)] = 0
        }
        newest = span
      }
      // What comes late counts as new.
      bytes[Int(newest % spans)] += count
      sum += count
    }
  }

  struct Entry: BitwiseCopyable {
    /// `Flow.identity`.
    var flow: UInt64
    var client: Window
    var server: Window
  }

  private var entries: ZeroedTable<Entry>
  /// How many spans are summed up, and how long each is, in nanoseconds.
  private let spans: Int64
  private let spanLength: Int64
  private let limit: UInt64

  init(_ settings: EngineSettings, places: Int) {
    limit = UInt64(settings.elephantBytes)
    entries = ZeroedTable(count: settings.elephantBytes > 0 ? places : 1)
    spans = Int64(min(settings.elephantInterval, Self.slotMaximum))
    spanLength = Int64(settings.elephantInterval) * FlowTimeouts.second / spans
  }

  /// Counts what one side of the flow at `place` sent; true: it is as much as is called much.
  mutating func add(_ count: Int, _ place: Int, flow: UInt64, fromClient: Bool, at time: Int64) -> Bool {
    if entries[place].flow != flow { entries[place] = Entry(flow: flow, client: Window(), server: Window()) }
    let span = max(1, time / spanLength)
    if fromClient {
      entries[place].client.add(UInt64(count), span: span, of: spans)
      return entries[place].client.sum >= limit
    }
    entries[place].server.add(UInt64(count), span: span, of: spans)
    return entries[place].server.sum >= limit
  }
}
