#if Daemon
import ArgumentParser
import Foundation
import Logging
import Synchronization
import VMFenceCore

/// How log lines look.
enum LogFormat: String, ExpressibleByArgument, CaseIterable {
  case text, json
}

extension Logger.Level: @retroactive ExpressibleByArgument {}

/// Writes log lines to standard error, one write a line: `2026-11-25T21:00:00.000000+0000 warning: MESSAGE key=value`, or a JSON object.
/// Text from outside is escaped.
struct LineLogHandler: LogHandler {
  var logLevel: Logger.Level = .info
  var metadata: Logger.Metadata = [:]
  let format: LogFormat

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let (level, message) = (event.level, event.message)
    let all = metadata.merging(event.metadata ?? [:], uniquingKeysWith: { $1 }).sorted { $0.key < $1.key }
    let time = SystemClock().now.logDescription
    switch format {
    case .text:
      let details = all.map { " \($0.key)=\("\($0.value)".escapedForDisplay)" }.joined()
      Terminal.error.print("\(time) \(level.rawValue): \("\(message)".escapedForDisplay)\(details)")
    case .json:
      var object = ["time": time, "level": level.rawValue, "message": "\(message)"]
      for (key, value) in all { object[key] = "\(value)" }
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
      guard let data = try? encoder.encode(object) else { return }
      Terminal.error.print(String(decoding: data, as: UTF8.self).escapedInJSON)
    }
  }
}

extension Logger {
  init(level: Logger.Level, format: LogFormat) {
    self.init(label: "vmfence") { _ in LineLogHandler(logLevel: level, format: format) }
  }

  /// One line for each diagnostic, at the level that fits its severity.
  func log(_ diagnostics: [Diagnostic]) {
    for diagnostic in diagnostics {
      let level: Logger.Level =
        switch diagnostic.severity {
        case .error: .error
        case .warning: .warning
        case .note: .info
        }
      let place = diagnostic.place.map { "\($0): " } ?? ""
      let remedy = diagnostic.remedy.isEmpty ? "" : " (\(diagnostic.remedy))"
      log(level: level, "\(place)\(diagnostic.message)\(remedy)")
    }
  }
}

extension Timestamp {
  /// As in events.
  fileprivate var logDescription: String {
    let date = Date(timeIntervalSince1970: Double(nanoseconds) / 1e9)
    return date.formatted(
      .iso8601.year().month().day().time(includingFractionalSeconds: true).timeZone(separator: .omitted))
  }
}

/// Tells the log of what an operator wants to see there: decisions, what VMFence noticed, who needs rules. Alerts go to the
/// event sinks.
struct LogEventSink: PromptEventSink {
  let logger: Logger
  let directory: DomainDirectory

  func receive(_ event: Event) {
    // In a flood, what follows would cost more than all else.
    switch event {
    case .alert, .packet: return
    default: break
    }
    let name = event.incarnation.flatMap(directory.entry)?.description.name
    var metadata: Logger.Metadata = [:]
    if let name { metadata["domain"] = "\(name)" }
    switch event {
    case .alert, .file, .packet: return
    case .decision(let decision):
      metadata["decision"] = "\(decision.id)"
      metadata["policy"] = "\(decision.policy)"
      let what = decision.source.map { "\(decision.measure.name) \($0)" } ?? decision.measure.name
      logger.log(
        level: decision.status == .pending ? .warning : .notice,
        "\(what): \(decision.status.rawValue): \(decision.reason)",
        metadata: metadata)
    case .platform(let alert):
      metadata["kind"] = "\(alert.kind.name)"
      if alert.count > 1 { metadata["count"] = "\(alert.count)" }
      let level: Logger.Level = alert.severity <= 1 ? .error : alert.severity == 2 ? .warning : .notice
      logger.log(level: level, "\(alert.message)", metadata: metadata)
    case .lifecycle(let report): receive(report, metadata)
    }
  }

  private func receive(_ report: LifecycleReport, _ metadata: Logger.Metadata) {
    switch report.kind {
    case .transition(let from, let event, let to):
      logger.debug("\(report.domainName): \(from.rawValue) → \(to.rawValue) (\(event.rawValue))", metadata: metadata)
    case .unexpected(let state, let event):
      logger.warning("\(report.domainName): unexpected \(event.rawValue) in \(state.rawValue)", metadata: metadata)
    case .configurationNeeded:
      logger.warning(
        "\(report.domainName) has no rules and is not guarded: configure some for it, or `vmfence-ref rules set`",
        metadata: metadata)
    case .stuck(let state, let duration):
      logger.error("\(report.domainName) has been \(state.rawValue) for \(duration.display)", metadata: metadata)
    }
  }
}
#endif
