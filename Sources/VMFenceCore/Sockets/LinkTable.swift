/// Which interfaces there are, by the kernel's messages about them (rtnetlink(7); linux/rtnetlink.h, linux/if_link.h).
package struct LinkTable: Sendable {
  /// More are not known.
  package static let limit = 65_536

  enum Kind {
    static let newLink: UInt16 = 16
    static let deletedLink: UInt16 = 17
    static let listLinks: UInt16 = 18
  }
  /// struct ifinfomsg: family, 8 bits of padding, type (16), number (32), flags (32), which flags changed (32).
  static let headBytes = 16
  /// IFLA_IFNAME.
  private static let nameAttribute: UInt16 = 3

  private var names: [UInt32: String] = [:]
  private var numbers: [String: UInt32] = [:]
  private var changed: Set<String> = []
  /// Of a list that is being read, what it had so far.
  private var listed: Set<UInt32>?

  package init() {}

  /// The number of the interface that has this name; 0: none has.
  package func number(of name: String) -> UInt32 { numbers[name] ?? 0 }

  /// The names that came, went, or are another interface's since this was asked last.
  package mutating func takeChanged() -> Set<String> {
    defer { changed = [] }
    return changed
  }

  /// What follows is the list of all, and news between.
  package mutating func beginList() { listed = [] }

  /// - `isWhole`: whether nothing was left out: what was not in it, is not there.
  package mutating func endList(isWhole: Bool) {
    if let listed, isWhole { for number in names.keys where !listed.contains(number) { remove(number) } }
    listed = nil
  }

  /// Takes one message; one that is of something else says nothing.
  package mutating func take(_ message: NetlinkMessage, _ bytes: RawSpan) throws(NetlinkError) {
    guard message.type == Kind.newLink || message.type == Kind.deletedLink else { return }
    let start = message.payload.lowerBound
    guard message.payload.count >= Self.headBytes else { throw .malformed("no header of an interface") }
    // Others than AF_UNSPEC say what an interface is to a protocol: one that leaves its bridge is told as deleted by that.
    guard bytes.u8(start) == 0 else { return }
    let number = bytes.hostU32(start + 4)
    guard message.type == Kind.newLink else { return remove(number) }
    var name = ""
    try NetlinkAttribute.forEach(in: bytes, message.payload.dropFirst(Self.headBytes)) { attribute in
      if attribute.type == Self.nameAttribute { name = attribute.text(bytes) }
    }
    guard number > 0, !name.isEmpty else { throw .malformed("an interface without a number or name") }
    put(number, name)
  }

  private mutating func put(_ number: UInt32, _ name: String) {
    listed?.insert(number)
    guard names[number] != name else { return }
    remove(number)
    listed?.insert(number)
    guard names.count < Self.limit else { return }
    if let other = numbers[name] { names[other] = nil }
    names[number] = name
    numbers[name] = number
    changed.insert(name)
  }

  private mutating func remove(_ number: UInt32) {
    listed?.remove(number)
    guard let name = names.removeValue(forKey: number) else { return }
    numbers[name] = nil
    changed.insert(name)
  }
}
