internal import Glibc
import VMFenceCore

/// What passes between a daemon and the process that opens packet sockets for it: one question, one answer, and so on. Both are of one build; all numbers are little-endian.
///
/// ```
/// question and answer, 16 bytes
///  0  version    u32  of all this
///  4  error      u32  of an answer: 0, and the socket comes with it (SCM_RIGHTS); or an errno value, and nothing does
///  8  sequence   u64  of a question: one more each time; of an answer: the question's
/// ```
///
/// A question says nothing of the interface: what is asked for is a socket that receives nothing yet. To give it a ring, to bind it and to make its interface promiscuous needs
/// no capability, so that is its owner's, as with a socket that it has opened itself (`PacketSocket`).
package struct PacketSocketMessage: Hashable, Sendable {
  package static let byteCount = 16
  private static let version: UInt32 = 0x564D_5001
  /// The greatest errno value (MAX_ERRNO of the kernel).
  private static let errorLimit: UInt32 = 4095

  package var sequence: UInt64
  /// An errno value; 0: there is a socket.
  package var error: Int32

  package init(sequence: UInt64, error: Int32 = 0) {
    self.sequence = sequence
    self.error = error
  }

  /// nil when it is none, or one of another build.
  package init?(_ bytes: [UInt8]) {
    guard bytes.count == Self.byteCount else { return nil }
    let (version, error, sequence) = bytes.withRawSpan { ($0.u32le(0), $0.u32le(4), $0.u64le(8)) }
    guard version == Self.version, error <= Self.errorLimit else { return nil }
    self.init(sequence: sequence, error: Int32(error))
  }

  package var encoded: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.byteCount)
    store(Self.version, in: &bytes, at: 0)
    store(UInt32(bitPattern: error), in: &bytes, at: 4)
    store(sequence, in: &bytes, at: 8)
    return bytes
  }
}

/// The process's side. Used by one thread.
package struct PacketSocketServer {
  private var lastSequence: UInt64?

  package init() {}

  /// - `open`: opens a packet socket, and leaves it to this.
  /// - Returns: the answer and the socket that goes with it, which is the caller's to close; nil when the owner asked what no sound one asks: then this is to end.
  package mutating func answer(
    _ message: [UInt8],
    open: () throws(SystemFailure) -> Int32 = { () throws(SystemFailure) in try PacketSocket.open().release() }
  ) -> (answer: [UInt8], descriptor: Int32?)? {
    guard let question = PacketSocketMessage(message), question.error == 0,
      lastSequence.map({ question.sequence > $0 }) ?? true
    else { return nil }
    lastSequence = question.sequence
    do throws(SystemFailure) {
      return (question.encoded, try open())
    } catch {
      return (PacketSocketMessage(sequence: question.sequence, error: min(max(error.number, 1), 4095)).encoded, nil)
    }
  }
}
