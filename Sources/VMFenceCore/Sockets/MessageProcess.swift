/// A process that was started for one purpose, as its owner has it: messages go to and fro over a socket that keeps them apart. What it sends is checked by
/// whoever takes it, for the process may have been taken over.
///
/// `HelperProcess` of `VMFenceProcess` is one. Used by one thread at a time.
public protocol MessageProcess: AnyObject, Sendable {
  /// Hands a message over, without waiting.
  ///
  /// - Returns: false when there is no room for it now, or nobody to take it.
  func send(_ message: [UInt8]) -> Bool
  /// Takes one message, and waits for it so long at the most.
  func receive(within patience: Duration) -> ReceivedMessage
  /// Returns when it is gone: by itself within `patience`, or killed. One that the kernel does not let go is not waited for longer than a second.
  func end(patience: Duration)
  /// How it ended, once `end` has returned; before that, `running`.
  var status: DetectorStatus { get }
}

/// One whose messages may bring an open descriptor each (SCM_RIGHTS, unix(7)).
public protocol DescriptorProcess: MessageProcess {
  /// Takes one message, as `receive(within:)` does.
  ///
  /// - `descriptor`: set to the descriptor that has come, close-on-exec and the caller's to close, whatever is returned; nil when none has, or more than one.
  func receive(within patience: Duration, descriptor: inout Int32?) -> ReceivedMessage
}

/// What came of waiting for a message.
public enum ReceivedMessage: Hashable, Sendable {
  case message([UInt8])
  /// Nothing has come.
  case nothing
  /// The process has ended, or hung up.
  case ended
}
