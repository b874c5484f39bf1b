internal import Glibc

/// The interfaces of a network namespace, as the kernel tells of them (rtnetlink(7)): nobody need look at each again and again. The namespace is that of the thread that takes the
/// news first.
///
/// Used by one thread at a time.
package struct HostLinks: ~Copyable, Sendable {
  /// RTMGRP_* of linux/rtnetlink.h: links; of IPv4 and of IPv6, addresses and routes.
  private static let groups: UInt32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
  /// The kernel fills no more in one read.
  private static let readBytes = 32 << 10
  /// Reads of one call; the rest is left for the next.
  private static let readLimit = 256
  /// Reads of a list: one has about twenty interfaces.
  private static let listReadLimit = 8_192
  /// From one list to the next: who makes interfaces faster than their news are taken does not keep anybody busy.
  private static let listPause: Duration = .seconds(1)
  private static let roomBytes: Int32 = 1 << 20

  private var table = LinkTable()
  private var endpoint: NetlinkEndpoint?
  private var sequence: UInt32 = 0
  /// Something of what is there may not be known.
  private var isIncomplete = true
  private var listed: ContinuousClock.Instant?
  private var buffer = [UInt8](repeating: 0, count: Self.readBytes)

  package init() {}

  /// The number of the interface that has this name, as far as news were taken; 0: none has.
  package func number(of name: String) -> UInt32 { table.number(of: name) }

  /// Takes the news, without waiting. What is lost since it was not taken in time is made good by a list of all, no sooner than a second after the last.
  ///
  /// - Returns: nil when nothing was told of links, addresses and routes; else the names that came, went, or are another interface's now. At first, all.
  /// - Throws: when there is no socket to be had, or it failed: the next call opens another, and lists all again.
  package mutating func take(at now: ContinuousClock.Instant) throws(NetlinkError) -> Set<String>? {
    do throws(NetlinkError) {
      if endpoint == nil { try open() }
      var (hasNews, isOver) = (false, false)
      for _ in 0..<Self.readLimit { guard try read(&hasNews, &isOver) else { break } }
      if isIncomplete, listed.map({ now >= $0 + Self.listPause }) ?? true {
        listed = now
        hasNews = true
        try list()
      }
      return hasNews ? table.takeChanged() : nil
    } catch {
      endpoint = nil
      throw error
    }
  }

  private mutating func open() throws(NetlinkError) {
    let opened = try NetlinkEndpoint.open(.route, groups: Self.groups, peer: "the kernel's news of interfaces")
    // As much as is allowed is enough.
    opened.set(SOL_SOCKET, SO_RCVBUF, Self.roomBytes)
    endpoint = consume opened
    (isIncomplete, listed) = (true, nil)
  }

  /// Asks for all links, and reads until the list is over. The kernel makes it as it is read: nobody waits.
  private mutating func list() throws(NetlinkError) {
    sequence &+= 1
    // struct nlmsghdr: length, type, NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH, sequence, port.
    var question: [UInt8] = []
    question.append(host: UInt32(40))
    question.append(host: LinkTable.Kind.listLinks)
    question.append(host: UInt16(0x301))
    question.append(host: sequence)
    question.append(host: UInt32(0))
    question += [UInt8](repeating: 0, count: LinkTable.headBytes)
    // IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS.
    question.append(host: UInt16(8))
    question.append(host: UInt16(29))
    question.append(host: UInt32(1 << 3))
    try endpoint?.send(question)
    isIncomplete = false
    var (hasNews, isOver) = (false, false)
    table.beginList()
    for _ in 0..<Self.listReadLimit {
      guard try read(&hasNews, &isOver), !isOver else { break }
    }
    if !isOver { isIncomplete = true }
    table.endList(isWhole: !isIncomplete)
  }

  /// Reads once.
  ///
  /// - `isOver`: set at the end of the last list that was asked for.
  /// - Returns: false when there was nothing.
  private mutating func read(_ hasNews: inout Bool, _ isOver: inout Bool) throws(NetlinkError) -> Bool {
    let count: Int?
    do throws(NetlinkError) { count = try endpoint?.receive(into: &buffer, waits: false) } catch .socket(ENOBUFS, _) {
      (isIncomplete, hasNews) = (true, true)
      return true
    }
    guard let count else { return false }
    let read = buffer
    try read.withRawSpan { (whole) throws(NetlinkError) in
      let bytes = whole.extracting(0..<count)
      try NetlinkMessage.forEach(in: bytes) { (message) throws(NetlinkError) in
        // Interfaces came or went while they were listed.
        if message.flags & NetlinkMessage.Flag.interrupted != 0 { isIncomplete = true }
        switch message.type {
        case NetlinkMessage.Kind.done: if message.sequence == sequence { isOver = true }
        case NetlinkMessage.Kind.error: if let error = try message.error(in: bytes) { throw error }
        default:
          hasNews = true
          try table.take(message, bytes)
        }
      }
    }
    return true
  }
}
