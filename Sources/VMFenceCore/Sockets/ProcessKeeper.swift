internal import Glibc

/// One helper process after the other, for somebody who needs one always: it is started, asked one question at a time, given up when it has ended, owes an answer for too long or says what no
/// sound one says, and started again, not too often. What is asked, and whom its end is told, is its owner's.
///
/// Nothing is kept of what a process sends: it waits in the process's own socket until somebody waits for an answer, and what nobody has asked for is the end of the process.
///
/// Used by one thread at a time. Of copies only one goes on with the process.
package struct ProcessKeeper: Sendable {
  package typealias Start = @Sendable () throws(DetectorError) -> any MessageProcess

  /// How long one that hung up is waited for, to say how it ended.
  private static let endPatience: Duration = .milliseconds(100)

  private let name: String
  private let restart: Duration
  private let start: Start
  private var process: (any MessageProcess)?
  /// Why there is none.
  private var reason = "it was not started yet"
  private var started: ContinuousClock.Instant?
  /// Since when an answer is awaited.
  private var owing: ContinuousClock.Instant?
  /// There was no room for the question, or nobody to take it.
  private var isUntaken = false

  /// - `name`: the program's, for people.
  /// - `restart`: from one start to the next, as `mayBegin` has it.
  /// - `start`: starts a process. Called by whoever calls `begin`.
  package init(_ name: String, restart: Duration, _ start: @escaping Start) {
    self.name = name
    self.restart = restart
    self.start = start
  }

  /// Why there is no process; nil when there is one, as far as is known.
  package var absence: String? { process == nil ? reason : nil }
  /// Whether an answer is awaited.
  package var isOwing: Bool { owing != nil }
  /// That there is none any more, for people.
  package var farewell: String { "\(name) is gone (\(reason)) and is started again" }
  /// What helps against one that never works.
  package var remedy: String { "install \(name) from the same build as this program" }

  /// Whether there is none, and the last start was long enough ago.
  package func mayBegin(at now: ContinuousClock.Instant) -> Bool {
    process == nil && started.map { now >= $0 + restart } ?? true
  }

  /// Starts a process in the place of the last, at once. Whether it works shows in its first answer.
  ///
  /// - Throws: what `start` throws; `absence` says it, too.
  package mutating func begin(at now: ContinuousClock.Instant) throws(DetectorError) {
    end("another is started")
    started = now
    do throws(DetectorError) { process = try start() } catch {
      reason = error.message
      throw error
    }
  }

  /// Sends a question, without waiting. One that owes an answer is asked nothing, and none is nobody.
  package mutating func ask(_ question: [UInt8], at now: ContinuousClock.Instant) {
    guard let process, owing == nil else { return }
    owing = now
    // There is room for the one question that is under way: what takes none has ended, or takes none ever.
    isUntaken = !process.send(question)
  }

  /// Takes the answer, and waits for it so long at the most. Waits for none that nobody has asked for, but finds it.
  ///
  /// - `read`: makes an answer of a message; nil when no sound process sends that: it is ended then.
  /// - Returns: nil when there is none yet, or no process any more, which `absence` says.
  package mutating func answer<Answer>(within patience: Duration, _ read: ([UInt8]) -> Answer?) -> Answer? {
    guard let bytes = message(within: patience, { $0.receive(within: $1) }) else { return nil }
    return settle(read(bytes))
  }

  /// The same, of a `DescriptorProcess`.
  ///
  /// - `read`: gets the descriptor besides that has come with it, which is its own to close.
  package mutating func answer<Answer: ~Copyable>(
    within patience: Duration, withDescriptor read: ([UInt8], Int32?) -> Answer?
  ) -> Answer? {
    var descriptor: Int32?
    let bytes = message(within: patience) { process, patience in
      if let stray = descriptor.take() { close(stray) }
      guard let process = process as? any DescriptorProcess else { return process.receive(within: patience) }
      return process.receive(within: patience, descriptor: &descriptor)
    }
    guard let bytes else {
      if let descriptor { close(descriptor) }
      return nil
    }
    return settle(read(bytes, descriptor))
  }

  private mutating func message(
    within patience: Duration, _ receive: (any MessageProcess, Duration) -> ReceivedMessage
  ) -> [UInt8]? {
    guard let process else { return nil }
    guard !isUntaken else {
      end()
      return nil
    }
    let deadline = ContinuousClock.now + (isOwing ? patience : .zero)
    var left = max(.zero, deadline - .now)
    while true {
      switch receive(process, left) {
      case .message(let bytes):
        if isOwing { return bytes }
        endAsUnsound()
        return nil
      case .ended:
        end()
        return nil
      // A signal may have ended the wait.
      case .nothing: left = deadline - .now
      }
      guard left > .zero else { return nil }
    }
  }

  private mutating func settle<Answer: ~Copyable>(_ answer: consuming Answer?) -> Answer? {
    if answer == nil { endAsUnsound() } else { owing = nil }
    return answer
  }

  // MARK: Its end

  /// Ends one that has owed an answer for so long.
  package mutating func endIfOwing(for late: Duration, at now: ContinuousClock.Instant) {
    if let owing, now >= owing + late { endAsLate(late) }
  }

  /// Ends one that was waited for in vain for so long: what it did not do, it will not do.
  package mutating func endAsLate(_ patience: Duration) { end("it did not answer within \(patience)") }

  private mutating func endAsUnsound() { end("it gave an answer that no sound one gives") }

  /// Ends it if there is one.
  ///
  /// - `reason`: what `absence` is to say; nil: how it ended by itself.
  package mutating func end(_ reason: String? = nil) {
    guard let process else { return }
    process.end(patience: reason == nil ? Self.endPatience : .zero)
    let ending =
      switch process.status {
      case .exited(let code): "it ended with status \(code)"
      case .crashed(let signal): "it was killed by signal \(signal)"
      default: "it hung up"
      }
    self.process = nil
    self.reason = reason ?? ending
    (owing, isUntaken) = (nil, false)
  }
}
