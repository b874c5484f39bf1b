/// The numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project). All fields are big-endian.
enum NBD {
  static let initialMagic: UInt64 = 0x4E42_444D_4147_4943  // "NBDMAGIC"
  static let optionMagic: UInt64 = 0x4948_4156_454F_5054  // "IHAVEOPT"
  static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
  static let requestMagic: UInt32 = 0x2560_9513
  static let simpleReplyMagic: UInt32 = 0x6744_6698
  static let structuredReplyMagic: UInt32 = 0x668E_33EF

  enum HandshakeFlag {
    static let fixedNewstyle: UInt16 = 1
    static let noZeroes: UInt16 = 2
  }

  enum Option {
    static let exportName: UInt32 = 1
    static let abort: UInt32 = 2
    static let list: UInt32 = 3
    static let info: UInt32 = 6
    static let go: UInt32 = 7
    static let structuredReply: UInt32 = 8
    static let listMetaContext: UInt32 = 9
    static let setMetaContext: UInt32 = 10
  }

  enum OptionReply {
    static let ack: UInt32 = 1
    static let server: UInt32 = 2
    static let info: UInt32 = 3
    static let metaContext: UInt32 = 4
    static let unsupported: UInt32 = 1 << 31 | 1
    static let invalid: UInt32 = 1 << 31 | 3
    static let unknown: UInt32 = 1 << 31 | 6
  }

  enum Info {
    static let export: UInt16 = 0
    static let name: UInt16 = 1
    static let blockSize: UInt16 = 3
  }

  enum TransmissionFlag {
    static let hasFlags: UInt16 = 1 << 0
    static let readOnly: UInt16 = 1 << 1
    static let sendFlush: UInt16 = 1 << 2
    static let sendFUA: UInt16 = 1 << 3
    static let sendTrim: UInt16 = 1 << 5
    static let sendWriteZeroes: UInt16 = 1 << 6
    static let sendDF: UInt16 = 1 << 7
    static let canMultiConn: UInt16 = 1 << 8
    static let sendCache: UInt16 = 1 << 10
    static let sendFastZero: UInt16 = 1 << 11
  }

  enum Command {
    static let read: UInt16 = 0
    static let write: UInt16 = 1
    static let disconnect: UInt16 = 2
    static let flush: UInt16 = 3
    static let trim: UInt16 = 4
    static let cache: UInt16 = 5
    static let writeZeroes: UInt16 = 6
    static let blockStatus: UInt16 = 7
  }

  enum CommandFlag {
    static let fua: UInt16 = 1 << 0
    static let noHole: UInt16 = 1 << 1
    static let dontFragment: UInt16 = 1 << 2
    static let requestOne: UInt16 = 1 << 3
    static let fastZero: UInt16 = 1 << 4
  }

  enum Chunk {
    static let done: UInt16 = 1
    static let none: UInt16 = 0
    static let offsetData: UInt16 = 1
    static let blockStatus: UInt16 = 5
    static let error: UInt16 = 1 << 15 | 1
  }

  /// Errors as they are sent; the protocol's own numbers, which are Linux's.
  enum Failure {
    static let permission: UInt32 = 1
    static let inputOutput: UInt32 = 5
    static let memory: UInt32 = 12
    static let invalid: UInt32 = 22
    static let space: UInt32 = 28
    static let overflow: UInt32 = 75
    static let unsupported: UInt32 = 95
  }

  /// The one metadata context that is offered, and the number it has in replies.
  static let allocationContext = Array("base:allocation".utf8)
  static let allocationContextID: UInt32 = 1

  enum Extent {
    static let hole: UInt32 = 1
    static let zero: UInt32 = 2
  }

  static let requestSize = 28
  static let simpleReplySize = 16
  static let structuredHeaderSize = 20
}

extension Array where Element == UInt8 {
  mutating func append16(_ value: UInt16) {
    append(UInt8(value >> 8))
    append(UInt8(truncatingIfNeeded: value))
  }

  mutating func append32(_ value: UInt32) {
    append16(UInt16(value >> 16))
    append16(UInt16(truncatingIfNeeded: value))
  }

  mutating func append64(_ value: UInt64) {
    append32(UInt32(value >> 32))
    append32(UInt32(truncatingIfNeeded: value))
  }
}
