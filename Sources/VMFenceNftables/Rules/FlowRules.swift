import VMFenceCore

/// The sets of flows that are cut, and their rules. A key: the guest's port · the guest's end · the other end · the ports of both ends. One element
/// cuts both directions.
///
/// A key has five fields, since nft(8) cannot list a set of more: it aborts on the whole table. So the protocol is not among them: TCP, UDP and SCTP
/// between the very same ports are one flow; for other protocols the first port stands for the number (in its first byte), and the second is 0.
enum FlowRules {
  static func set(_ family: IPAddress.Family) -> String { family == .v4 ? "flow4" : "flow6" }

  static let sets: [SetSpecification] = [IPAddress.Family.v4, .v6].map { family in
    let address: SetSpecification.Field = family == .v4 ? .v4 : .v6
    return SetSpecification(
      name: set(family), kind: .counted,
      fields: [.interface, address, address, .transportPort, .transportPort], hasTimeouts: true)
  }

  static let chains: [ChainSpecification] = [ChainSpecification(name: "flow4"), ChainSpecification(name: "flow6")]

  /// Protocols with ports in the first four bytes: TCP, UDP, SCTP.
  static let withPorts: [UInt8] = [6, 17, 132]

  static let rules: [RuleSpecification] = [IPAddress.Family.v4, .v6].flatMap { family in
    [true, false].flatMap { isFromGuest -> [RuleSpecification] in
      let words = UInt32(family.bitWidth / 32)
      let (own, other) = (Register(4), Register(4 + words))
      let (ownPort, otherPort) = (Register(4 + 2 * words), Register(5 + 2 * words))
      let number = Register(6 + 2 * words)
      let ends: [Expression] = [
        .meta(isFromGuest ? .inputInterface : .outputInterface, Register(0)),
        .address(family, isSource: isFromGuest, own), .address(family, isSource: !isFromGuest, other),
        .meta(.transportProtocol, number),
      ]
      let ports: [Expression] = [
        .payload(.transport, offset: isFromGuest ? 0 : 2, length: 2, ownPort),
        .payload(.transport, offset: isFromGuest ? 2 : 0, length: 2, otherPort),
      ]
      let noPorts: [Expression] =
        withPorts.map { .notEqual(number, [$0]) }
        + [.meta(.transportProtocol, ownPort), .load(otherPort, [0, 0, 0, 0])]
      let cut: [Expression] = [.lookup(Register(0), set: set(family)), .counter, .verdict(.drop)]
      let direction = isFromGuest ? "from" : "to"
      return [
        RuleSpecification(set(family), "flow with ports \(direction)", ends + ports + cut),
        RuleSpecification(set(family), "flow without ports \(direction)", ends + noPorts + cut),
      ]
    }
  }
}
