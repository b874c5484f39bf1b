/// Where things lie in the page, and how much of anything there may be. The specification is in the documentation of this module.
public enum ChannelLayout {
  /// The versions of the protocol that this program speaks.
  public static let versions: ClosedRange<UInt16> = 1...1
  static let magic: UInt64 = 0x004E_4148_4346_4D56

  /// Words that the guest writes.
  enum Guest {
    static let magic = 0
    static let versions = 8
    static let session = 16
    static let epoch = 24
    static let tail = 32
    static let head = 40
  }

  /// Words that Dom0 writes.
  enum Host {
    static let epoch = 64
    static let state = 72
    static let tail = 80
    static let head = 88
  }

  static let downOffset = 256
  static let upOffset = 2176
  /// The size of a lane, in bytes.
  public static let laneBytes = 1920

  /// The longest message, with its header.
  public static let frameLimit = 1024
  static let payloadLimit = frameLimit - FrameHeader.byteCount
  /// Of a policy, in one message.
  static let chunkBytes = payloadLimit - PolicyChunk.headerBytes
  /// Items of a declaration, and the longest text of one, in bytes.
  public static let declarationLimit = 64
  public static let textLimit = 255
  /// The longest reason in an acknowledgement, in bytes.
  public static let reasonLimit = 128
}

/// One direction: where its bytes and both indices lie. An index counts bytes since the session began; it never wraps.
struct Lane {
  var offset: Int
  /// Written by the sender.
  var tail: Int
  /// Written by the receiver.
  var head: Int

  static let down = Lane(
    offset: ChannelLayout.downOffset, tail: ChannelLayout.Host.tail, head: ChannelLayout.Guest.head)
  static let up = Lane(offset: ChannelLayout.upOffset, tail: ChannelLayout.Guest.tail, head: ChannelLayout.Host.head)

  /// The place in the page of the word at an index.
  func place(_ index: UInt64) -> Int { offset + Int(index % UInt64(ChannelLayout.laneBytes)) }
}
