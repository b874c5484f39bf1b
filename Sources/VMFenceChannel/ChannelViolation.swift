public import VMFenceCore

/// Why a channel was closed: what the other side did that the protocol does not allow.
public struct ChannelViolation: DescribedError, Hashable {
  /// Which rule was broken. The numbers are the protocol's: the other side is told them in the page's state word, so none is ever given away anew.
  public enum Code: UInt16, Sendable, Hashable, CaseIterable {
    /// The page cannot be mapped, or was not prepared.
    case page = 1
    /// No version in common.
    case version = 2
    /// An index that goes back, or names what cannot be there.
    case index = 3
    /// A header that is wrong.
    case header = 4
    /// Bytes that do not belong to their header.
    case checksum = 5
    /// A message of another session, one that was skipped or came twice.
    case order = 6
    /// A message that is not what its type says.
    case message = 7
    /// A message that nobody asked for: the acknowledgement of what was never sent.
    case unexpected = 8

    /// Its case's name, for display.
    public var name: String { "\(self)" }
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace? { nil }
  public var remedy: String { "" }

  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
}
