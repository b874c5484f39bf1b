internal import VMFenceCore

/// What an NBD client is told about the disk.
struct NBDExport: Sendable {
  /// The empty name is always this disk, too.
  var name: [UInt8]
  var byteCount: UInt64
  var isReadOnly: Bool

  var transmissionFlags: UInt16 {
    typealias Flag = NBD.TransmissionFlag
    // A flush is about the whole file, whichever connection wrote: several connections are safe.
    let common = Flag.hasFlags | Flag.sendFlush | Flag.sendDF | Flag.canMultiConn | Flag.sendCache
    return isReadOnly
      ? common | Flag.readOnly
      : common | Flag.sendFUA | Flag.sendTrim | Flag.sendWriteZeroes | Flag.sendFastZero
  }
}

/// What a client and the server agreed on.
struct NBDSession: Hashable, Sendable {
  var isStructured = false
  /// `base:allocation` was asked for: block status may be.
  var hasAllocation = false
}

/// The fixed newstyle handshake, on the side of the server: bytes in, bytes out, no socket.
///
/// What a client can make it do is bounded: `optionLimit` options, `optionBytesLimit` bytes in each; whoever wants more
/// is hung up on. An option that this server does not know is answered as such.
struct NBDHandshake: Sendable {
  static let optionLimit = 64
  /// In bytes. The longest name that the protocol allows has 4096.
  static let optionBytesLimit = 16 << 10
  static let queryLimit = 64

  enum Outcome: Hashable, Sendable {
    /// The rest has not come yet.
    case incomplete
    case transmission(NBDSession)
    /// The client left as it should.
    case aborted
    /// Not this protocol, or more of it than is taken: hang up. One sentence without the client's bytes.
    case refused(String)
  }

  let export: NBDExport
  private var session = NBDSession()
  private var flags: UInt32?
  private var options = 0

  init(_ export: NBDExport) { self.export = export }

  /// What the server says first.
  static var greeting: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append64(NBD.initialMagic)
    bytes.append64(NBD.optionMagic)
    bytes.append16(NBD.HandshakeFlag.fixedNewstyle | NBD.HandshakeFlag.noZeroes)
    return bytes
  }

  /// Takes what has come, as far as it is whole, and appends answers to `output`.
  ///
  /// - Returns: how many bytes were taken, and how it stands. Bytes that follow the end of the handshake are left.
  mutating func consume(_ input: RawSpan, output: inout [UInt8]) -> (count: Int, outcome: Outcome) {
    var position = 0
    if flags == nil {
      guard input.byteCount >= 4 else { return (0, .incomplete) }
      let given = input.u32(0)
      guard given & ~3 == 0, given & 1 == 1 else {
        return (4, .refused("the client does not speak the fixed newstyle handshake"))
      }
      flags = given
      position = 4
    }
    while input.byteCount - position >= 16 {
      guard input.u64(position) == NBD.optionMagic else { return (position, .refused("an option without its magic")) }
      let option = input.u32(position + 8)
      let length = input.u32(position + 12)
      guard length <= UInt32(Self.optionBytesLimit) else {
        return (position, .refused("an option of \(length) bytes; at most \(Self.optionBytesLimit) are taken"))
      }
      guard input.byteCount - position - 16 >= Int(length) else { break }
      options += 1
      guard options <= Self.optionLimit else {
        return (position, .refused("more than \(Self.optionLimit) options"))
      }
      let data = input.extracting(position + 16..<position + 16 + Int(length))
      position += 16 + Int(length)
      let outcome = answer(option, data, &output)
      if outcome != .incomplete { return (position, outcome) }
    }
    return (position, .incomplete)
  }

  /// `incomplete`: the handshake goes on.
  private mutating func answer(_ option: UInt32, _ data: RawSpan, _ output: inout [UInt8]) -> Outcome {
    switch option {
    case NBD.Option.exportName: return enter(data, &output)
    case NBD.Option.abort:
      reply(option, NBD.OptionReply.ack, to: &output)
      return .aborted
    case NBD.Option.list: list(data, &output)
    case NBD.Option.info, NBD.Option.go: return inform(option, data, &output)
    case NBD.Option.structuredReply:
      guard data.byteCount == 0 else {
        reply(option, NBD.OptionReply.invalid, to: &output)
        break
      }
      session.isStructured = true
      reply(option, NBD.OptionReply.ack, to: &output)
    case NBD.Option.listMetaContext, NBD.Option.setMetaContext: contexts(option, data, &output)
    default: reply(option, NBD.OptionReply.unsupported, to: &output)
    }
    return .incomplete
  }

  private func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = [], to output: inout [UInt8]) {
    output.append64(NBD.optionReplyMagic)
    output.append32(option)
    output.append32(type)
    output.append32(UInt32(data.count))
    output += data
  }

  private func isThisExport(_ name: RawSpan) -> Bool {
    name.byteCount == 0
      || name.byteCount == export.name.count && (0..<name.byteCount).allSatisfy { name.u8($0) == export.name[$0] }
  }

  // MARK: Options

  /// NBD_OPT_EXPORT_NAME has no error reply: a name that is not ours ends the connection.
  private func enter(_ name: RawSpan, _ output: inout [UInt8]) -> Outcome {
    guard isThisExport(name) else { return .refused("an export of another name") }
    output.append64(export.byteCount)
    output.append16(export.transmissionFlags)
    if (flags ?? 0) & UInt32(NBD.HandshakeFlag.noZeroes) == 0 { output += [UInt8](repeating: 0, count: 124) }
    return .transmission(session)
  }

  private func list(_ data: RawSpan, _ output: inout [UInt8]) {
    guard data.byteCount == 0 else { return reply(NBD.Option.list, NBD.OptionReply.invalid, to: &output) }
    var entry: [UInt8] = []
    entry.append32(UInt32(export.name.count))
    reply(NBD.Option.list, NBD.OptionReply.server, entry + export.name, to: &output)
    reply(NBD.Option.list, NBD.OptionReply.ack, to: &output)
  }

  /// NBD_OPT_INFO and NBD_OPT_GO: 32-bit length of the name, the name, 16-bit number of requests, 16 bits each.
  private func inform(_ option: UInt32, _ data: RawSpan, _ output: inout [UInt8]) -> Outcome {
    guard data.byteCount >= 6, data.u32(0) <= UInt32(data.byteCount - 6) else {
      reply(option, NBD.OptionReply.invalid, to: &output)
      return .incomplete
    }
    let nameEnd = 4 + Int(data.u32(0))
    let count = Int(data.u16(nameEnd))
    guard data.byteCount == nameEnd + 2 + 2 * count else {
      reply(option, NBD.OptionReply.invalid, to: &output)
      return .incomplete
    }
    guard isThisExport(data.extracting(4..<nameEnd)) else {
      reply(option, NBD.OptionReply.unknown, to: &output)
      return .incomplete
    }
    var isNameWanted = false
    for index in 0..<count where data.u16(nameEnd + 2 + 2 * index) == NBD.Info.name { isNameWanted = true }
    var info: [UInt8] = []
    info.append16(NBD.Info.export)
    info.append64(export.byteCount)
    info.append16(export.transmissionFlags)
    reply(option, NBD.OptionReply.info, info, to: &output)
    if isNameWanted {
      info = []
      info.append16(NBD.Info.name)
      reply(option, NBD.OptionReply.info, info + export.name, to: &output)
    }
    info = []
    info.append16(NBD.Info.blockSize)
    info.append32(1)
    info.append32(4096)
    info.append32(NBDLimits.requestBytes)
    reply(option, NBD.OptionReply.info, info, to: &output)
    reply(option, NBD.OptionReply.ack, to: &output)
    return option == NBD.Option.go ? .transmission(session) : .incomplete
  }

  /// 32-bit length of the export's name, the name, 32-bit number of queries, and each as 32-bit length and text.
  private mutating func contexts(_ option: UInt32, _ data: RawSpan, _ output: inout [UInt8]) {
    let isSetting = option == NBD.Option.setMetaContext
    if isSetting { session.hasAllocation = false }
    guard session.isStructured || !isSetting, data.byteCount >= 8, data.u32(0) <= UInt32(data.byteCount - 8) else {
      return reply(option, NBD.OptionReply.invalid, to: &output)
    }
    var position = 4 + Int(data.u32(0))
    guard isThisExport(data.extracting(4..<position)) else {
      return reply(option, NBD.OptionReply.unknown, to: &output)
    }
    let count = data.u32(position)
    position += 4
    var isWanted = count == 0 && !isSetting
    guard count <= UInt32(Self.queryLimit) else { return reply(option, NBD.OptionReply.invalid, to: &output) }
    for _ in 0..<count {
      guard data.byteCount - position >= 4, data.u32(position) <= UInt32(data.byteCount - position - 4) else {
        return reply(option, NBD.OptionReply.invalid, to: &output)
      }
      let end = position + 4 + Int(data.u32(position))
      let query = data.extracting(position + 4..<end).copiedBytes()
      if query == NBD.allocationContext || !isSetting && query == Array("base:".utf8) { isWanted = true }
      position = end
    }
    guard position == data.byteCount else { return reply(option, NBD.OptionReply.invalid, to: &output) }
    if isWanted {
      var context: [UInt8] = []
      context.append32(isSetting ? NBD.allocationContextID : 0)
      reply(option, NBD.OptionReply.metaContext, context + NBD.allocationContext, to: &output)
      if isSetting { session.hasAllocation = true }
    }
    reply(option, NBD.OptionReply.ack, to: &output)
  }
}
