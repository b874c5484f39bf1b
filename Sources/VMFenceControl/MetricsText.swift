/// Writes Prometheus's text format (version 0.0.4): each metric with its help and type once, then its samples.
public struct MetricsText: Sendable {
  public enum Kind: String, Sendable { case counter, gauge, histogram }

  public private(set) var text = ""
  private var current = ""

  public init() {}

  /// Begins a metric. Its samples follow.
  public mutating func metric(_ name: String, _ kind: Kind, _ help: String) {
    current = name
    let escaped = help.replacing("\\", with: "\\\\").replacing("\n", with: "\\n")
    text += "# HELP \(name) \(escaped)\n# TYPE \(name) \(kind.rawValue)\n"
  }

  /// A sample of the metric that was begun last. Values of labels may be any text.
  public mutating func sample(_ value: some BinaryInteger, suffix: String = "", _ labels: [(String, String)] = []) {
    line(String(value), suffix, labels)
  }

  public mutating func sample(_ value: Double, suffix: String = "", _ labels: [(String, String)] = []) {
    line("\(value)", suffix, labels)
  }

  private mutating func line(_ value: String, _ suffix: String, _ labels: [(String, String)]) {
    text += current + suffix
    if !labels.isEmpty {
      text += "{" + labels.map { "\($0.0)=\"\(Self.escaped($0.1))\"" }.joined(separator: ",") + "}"
    }
    text += " \(value)\n"
  }

  private static func escaped(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\\": result += "\\\\"
      case "\"": result += "\\\""
      case "\n": result += "\\n"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }
}

/// Counts durations in buckets, each with all that are not longer than its bound.
public struct LatencyHistogram: Sendable, Hashable {
  /// In seconds.
  public static let bounds: [Double] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 10]

  public private(set) var counts = [UInt64](repeating: 0, count: bounds.count)
  public private(set) var count: UInt64 = 0
  /// In seconds.
  public private(set) var sum = 0.0

  public init() {}

  public mutating func add(seconds: Double) {
    count += 1
    sum += seconds
    for index in counts.indices where seconds <= Self.bounds[index] { counts[index] += 1 }
  }

  /// Writes its samples.
  public func write(_ metrics: inout MetricsText) {
    for (bound, value) in zip(Self.bounds, counts) { metrics.sample(value, suffix: "_bucket", [("le", "\(bound)")]) }
    metrics.sample(count, suffix: "_bucket", [("le", "+Inf")])
    metrics.sample(sum, suffix: "_sum")
    metrics.sample(count, suffix: "_count")
  }
}
