/// The room of a bounded queue, shared so that whoever brings much leaves room to the others: each may hold as much as is free, and a little in any case.
/// One alone gets half; of n who bring too much each comes to about one part of n + 1, and as much stays free for who comes next. What anybody holds is
/// kept by the caller, so that asking costs two comparisons (the dynamic thresholds of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2),
/// 1998, with the factor 1, and a lower bound).
package struct FairRoom: Sendable {
  package let capacity: Int
  /// Who holds less than this may enter in any case.
  package let assured: Int
  /// At the most the capacity, and of each what is assured and what it then entered with.
  package private(set) var used = 0

  package init(capacity: Int, assured: Int = 16) {
    self.capacity = capacity
    self.assured = assured
  }

  /// Takes room for one more.
  ///
  /// - `held`: what the same holds already.
  /// - `amount`: what it takes, where that is not the same for all.
  /// - Returns: false when it holds its share.
  package mutating func enter(_ held: inout Int, _ amount: Int = 1) -> Bool {
    guard held < assured || amount <= capacity - used - held else { return false }
    held += amount
    used += amount
    return true
  }

  /// Gives back what `enter` took.
  package mutating func leave(_ held: inout Int, _ amount: Int = 1) {
    held -= amount
    used -= amount
  }

  package mutating func empty() { used = 0 }
}

/// The room of a bounded queue of events, shared between domains. What anybody who sends packets can make as many of as they like, what a guest can by
/// changing files, and what is decided or noticed have rooms of their own: none of these is displaced by another. What finds no room is counted, by domain.
package struct EventRoom: Sendable {
  /// Which room an event takes.
  package enum Kind: Int, Sendable, CaseIterable {
    /// A few lines in a time that is set, however much a guest does.
    case statistics
    case traffic, files, others

    package init(_ event: Event) {
      switch event {
      case .alert, .packet: self = .traffic
      case .file: self = .files
      case .decision, .lifecycle, .platform: self = .others
      }
    }
  }

  private var rooms: [FairRoom]
  /// By kind and domain, nil for the host; without those that hold nothing. A domain that is started anew is the same: it gets no other share.
  private var held = [[DomainUUID?: Int]](repeating: [:], count: Kind.allCases.count)
  /// What found no room since the start, of domains that were not forgotten.
  package private(set) var lost: [Incarnation?: UInt64] = [:]
  /// All of it.
  package private(set) var lostInAll: UInt64 = 0

  /// What each kind gets; one domain gets half of it.
  package init(statistics: Int = 0, traffic: Int, files: Int, others: Int, assured: Int = 16) {
    rooms = [statistics, traffic, files, others].map { FairRoom(capacity: $0, assured: assured) }
  }

  /// What a kind has taken.
  package func used(_ kind: Kind) -> Int { rooms[kind.rawValue].used }

  /// Takes room for an event, or counts it as lost.
  ///
  /// - `domain`: nil for what concerns the host.
  /// - `amount`: what it takes, in whatever the room was given in.
  package mutating func enter(_ kind: Kind, of domain: Incarnation?, _ amount: Int = 1) -> Bool {
    var mine = held[kind.rawValue][domain?.uuid] ?? 0
    guard rooms[kind.rawValue].enter(&mine, amount) else {
      lose(of: domain)
      return false
    }
    held[kind.rawValue][domain?.uuid] = mine
    return true
  }

  /// Takes room of which nobody knows whose it is, until all is given back: of statistics first, then of traffic, of files, of all else.
  package mutating func occupy(_ amount: Int) {
    var rest = amount
    for kind in Kind.allCases {
      var nobody = 0
      let part = min(rest, rooms[kind.rawValue].capacity - used(kind))
      guard part > 0, rooms[kind.rawValue].enter(&nobody, part) else { continue }
      rest -= part
    }
  }

  /// Counts one that the queue does not take for other reasons.
  package mutating func lose(of domain: Incarnation?) {
    lost[domain, default: 0] &+= 1
    lostInAll &+= 1
  }

  /// Gives back what `enter` took.
  package mutating func leave(_ kind: Kind, of domain: Incarnation?, _ amount: Int = 1) {
    guard var mine = held[kind.rawValue][domain?.uuid] else { return }
    rooms[kind.rawValue].leave(&mine, amount)
    held[kind.rawValue][domain?.uuid] = mine > 0 ? mine : nil
  }

  /// Gives back all of a kind.
  package mutating func leaveAll(_ kind: Kind) {
    rooms[kind.rawValue].empty()
    held[kind.rawValue].removeAll(keepingCapacity: true)
  }

  /// Keeps no count of what the domain lost any more.
  package mutating func forget(_ domain: Incarnation) { lost[domain] = nil }
}
