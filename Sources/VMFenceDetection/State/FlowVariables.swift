/// The bits and integers that rules keep with flows (`flowbits`, `flowint`).
///
/// Each place of the flow table has room for all bits and integers of the rule set, so nothing is ever lost for the want of room, and
/// memory is bounded: places × (bits / 64 + integers) words. Pages that no rule wrote to take none.
///
/// What is stored belongs to one flow: a place whose flow is another by now has nothing set.
struct FlowVariables: ~Copyable {
  /// A flow, for as long as it is the flow of its place.
  struct Owner: Equatable, BitwiseCopyable {
    var place: Int
    /// Not 0; another one for each flow that the place has had.
    var identity: UInt64
  }

  /// How many bits and integers there are.
  struct Shape: Equatable, BitwiseCopyable {
    var bits: Int
    var integers: Int

    fileprivate var bitWords: Int { (bits + 63) / 64 }
    fileprivate var words: Int { bitWords + integers }
  }

  let shape: Shape
  private let places: Int
  private let bitWords: Int
  private let stride: Int
  private var owners: ZeroedTable<UInt64>
  /// For each place: bits, then integers (bit 63: it is set).
  private var words: ZeroedTable<UInt64>

  /// Counts what rules set, unset or gave a value.
  private(set) var changes: UInt64 = 0

  private static let isPresent: UInt64 = 1 << 63

  /// - `places`: of the flow table.
  init(_ shape: Shape, places: Int) {
    self.shape = shape
    self.places = places
    bitWords = shape.bitWords
    stride = shape.words
    // Rules without variables need no tables.
    owners = ZeroedTable(count: stride == 0 ? 1 : places)
    words = ZeroedTable(count: stride == 0 ? 1 : places * stride)
  }

  func isSet(_ bit: Int, of owner: Owner) -> Bool {
    guard bit < shape.bits, owns(owner) else { return false }
    return words[owner.place * stride + bit >> 6] >> UInt64(bit & 63) & 1 != 0
  }

  mutating func set(_ bit: Int, to isSet: Bool, of owner: Owner) {
    guard bit < shape.bits else { return }
    if !owns(owner) {
      if !isSet { return }
      take(owner)
    }
    changes &+= 1
    let word = owner.place * stride + bit >> 6
    let mask = (1 as UInt64) << UInt64(bit & 63)
    if isSet { words[word] |= mask } else { words[word] &= ~mask }
  }

  /// nil: no rule gave it a value.
  func integer(_ index: Int, of owner: Owner) -> UInt32? {
    guard index < shape.integers, owns(owner) else { return nil }
    let word = words[owner.place * stride + bitWords + index]
    return word & Self.isPresent == 0 ? nil : UInt32(truncatingIfNeeded: word)
  }

  mutating func setInteger(_ index: Int, to value: UInt32, of owner: Owner) {
    guard index < shape.integers else { return }
    if !owns(owner) { take(owner) }
    changes &+= 1
    words[owner.place * stride + bitWords + index] = Self.isPresent | UInt64(value)
  }

  private func owns(_ owner: Owner) -> Bool { stride > 0 && owners[owner.place] == owner.identity }

  private mutating func take(_ owner: Owner) {
    owners[owner.place] = owner.identity
    for word in owner.place * stride..<(owner.place + 1) * stride { words[word] = 0 }
  }

  /// The same variables, found again by their names, for another rule set. Takes time with the number of flows.
  func adapted(from old: SnortRules, to new: SnortRules) -> FlowVariables {
    func origins(_ section: ImageSection) -> [Int?] {
      let known = Dictionary(zip(old.names(section), 0...)) { first, _ in first }
      return new.names(section).map { known[$0] }
    }
    var other = FlowVariables(new.variableShape, places: places)
    guard stride > 0 else { return other }
    let (bits, integers) = (origins(.flowBits), origins(.flowIntegers))
    for place in 0..<owners.count where owners[place] != 0 {
      let owner = Owner(place: place, identity: owners[place])
      for (new, old) in bits.enumerated() {
        if let old, isSet(old, of: owner) { other.set(new, to: true, of: owner) }
      }
      for (new, old) in integers.enumerated() {
        if let old, let value = integer(old, of: owner) { other.setInteger(new, to: value, of: owner) }
      }
    }
    return other
  }
}
