import VMFenceCore

/// The values of all data sets of one detector, in memory of fixed size. Placed by a secret key; a set that is full takes no more values,
/// which is counted. Used by one thread.
struct DataSetStore: ~Copyable {
  /// Values lie in pieces of 16, 32 … 65,536 bytes, of which those given back are used again.
  private static let unit = 16
  private static let classes = 13
  /// What finding a value takes besides it.
  private static let overhead = 48

  struct Entry: BitwiseCopyable {
    /// 0: the place is free.
    var hash: UInt64 = 0
    /// In units.
    var place: UInt32 = 0
    var length: UInt32 = 0
    var set: UInt16 = 0
    var reputation: UInt16 = 0
  }

  private struct Room {
    var kind: DataSet.Kind
    var name: [UInt8]
    var stateFile: [UInt8]
    var limit: Int
    var used = 0
  }

  private var rooms: [Room] = []
  private var table: ZeroedTable<Entry>
  private let mask: Int
  private var bytes: ByteStore
  private var nextUnit = 0
  /// The first piece given back of each class, as unit plus one; each holds the next in its first four bytes.
  private var free: [UInt32]
  private let hash: KeyedHash
  private(set) var refused: UInt64 = 0

  /// Bytes that a value of this length takes.
  static func memory(of length: Int) -> Int { unit << sizeClass(length) + overhead }

  private static func sizeClass(_ length: Int) -> Int {
    let units = (max(1, length) + unit - 1) / unit
    return units == 1 ? 0 : Int.bitWidth - (units - 1).leadingZeroBitCount
  }

  /// With what the image's sets hold. `key`: secret.
  init(_ sections: ImageSections, _ image: RawSpan, key: (UInt64, UInt64)) {
    let count = sections[.dataSets].count
    var total = 0
    for index in 0..<count {
      let record = sections[.dataSets].offset + index * DataSetRecord.stride
      func text(_ field: Int) -> [UInt8] {
        let start = sections[.patterns].offset + Int(image.u32le(record + field))
        return (0..<Int(image.u32le(record + field + 4))).map { image.u8(start + $0) }
      }
      let limit = Int(image.u32le(record + DataSetRecord.memory))
      total += limit
      rooms.append(
        Room(
          kind: DataSet.Kind(rawValue: UInt8(truncatingIfNeeded: image.u32le(record + DataSetRecord.kind))) ?? .string,
          name: text(DataSetRecord.name), stateFile: text(DataSetRecord.stateFile), limit: limit))
    }
    // A place and its half again for each value that there can be.
    var places = 2
    while places < total / (Self.unit + Self.overhead) * 3 / 2 + 2 { places *= 2 }
    table = ZeroedTable(count: places)
    mask = places - 1
    bytes = ByteStore(count: total + Self.unit)
    free = Array(repeating: 0, count: Self.classes)
    hash = KeyedHash(key: (key.0 ^ 0x6461_7461_7365_74, key.1 ^ 0x31))
    for index in 0..<count {
      let record = sections[.dataSets].offset + index * DataSetRecord.stride
      let first = Int(image.u32le(record + DataSetRecord.entriesStart))
      for entry in first..<first + Int(image.u32le(record + DataSetRecord.entriesCount)) {
        let place = sections[.dataEntries].offset + entry * DataEntryRecord.stride
        let start = sections[.patterns].offset + Int(image.u32le(place + DataEntryRecord.value))
        let value = image.extracting(start..<start + Int(image.u32le(place + DataEntryRecord.length)))
        _ = insert(value, in: index, UInt16(truncatingIfNeeded: image.u32le(place + DataEntryRecord.reputation)))
      }
    }
  }

  // MARK: Values

  func takes(_ length: Int, in set: Int) -> Bool { rooms[set].kind.takes(length) }

  func contains(_ value: RawSpan, in set: Int) -> Bool { find(value, set, hash(of: value, set)) != nil }

  /// nil: it is not there.
  func reputation(of value: RawSpan, in set: Int) -> UInt16? {
    find(value, set, hash(of: value, set)).map { table[$0].reputation }
  }

  /// False when it was there, or there is no room.
  mutating func insert(_ value: RawSpan, in set: Int, _ reputation: UInt16 = 0) -> Bool {
    let hash = hash(of: value, set)
    guard find(value, set, hash) == nil else { return false }
    let needed = Self.memory(of: value.byteCount)
    guard rooms[set].used + needed <= rooms[set].limit, let place = takePiece(value.byteCount) else {
      refused += 1
      return false
    }
    rooms[set].used += needed
    bytes.write(value, at: place * Self.unit)
    var index = Int(truncatingIfNeeded: hash) & mask
    // Never full: the limits leave a third of the places free.
    while table[index].hash != 0 { index = (index + 1) & mask }
    table[index] = Entry(
      hash: hash, place: UInt32(place), length: UInt32(value.byteCount), set: UInt16(set), reputation: reputation)
    return true
  }

  /// False when it was not there.
  mutating func remove(_ value: RawSpan, from set: Int) -> Bool {
    guard var hole = find(value, set, hash(of: value, set)) else { return false }
    let length = Int(table[hole].length)
    givePiece(Int(table[hole].place), length)
    rooms[set].used -= Self.memory(of: length)
    // What comes after and would not be found any more moves up.
    var index = (hole + 1) & mask
    while table[index].hash != 0 {
      let home = Int(truncatingIfNeeded: table[index].hash) & mask
      if (index - home) & mask >= (index - hole) & mask {
        table[hole] = table[index]
        hole = index
      }
      index = (index + 1) & mask
    }
    table[hole] = Entry()
    return true
  }

  private func find(_ value: RawSpan, _ set: Int, _ hash: UInt64) -> Int? {
    var index = Int(truncatingIfNeeded: hash) & mask
    while table[index].hash != 0 {
      let entry = table[index]
      if entry.hash == hash, Int(entry.set) == set, Int(entry.length) == value.byteCount, isEqual(value, entry) {
        return index
      }
      index = (index + 1) & mask
    }
    return nil
  }

  private func isEqual(_ value: RawSpan, _ entry: Entry) -> Bool {
    let start = Int(entry.place) * Self.unit
    for offset in 0..<value.byteCount where bytes[start + offset] != value.u8(offset) { return false }
    return true
  }

  private func hash(of value: RawSpan, _ set: Int) -> UInt64 {
    var sum = hash.hash(UInt64(value.byteCount), UInt64(set))
    var offset = 0
    while offset + 8 <= value.byteCount {
      sum = hash.hash(sum, value.u64le(offset))
      offset += 8
    }
    var rest: UInt64 = 0
    while offset < value.byteCount {
      rest = rest << 8 | UInt64(value.u8(offset))
      offset += 1
    }
    return hash.hash(sum, rest) | 1
  }

  // MARK: Memory

  private mutating func takePiece(_ length: Int) -> Int? {
    let sizeClass = Self.sizeClass(length)
    if free[sizeClass] != 0 {
      let unit = Int(free[sizeClass]) - 1
      free[sizeClass] = (0..<4).reduce(0) { $0 << 8 | UInt32(bytes[unit * Self.unit + $1]) }
      return unit
    }
    let units = 1 << sizeClass
    guard (nextUnit + units) * Self.unit <= bytes.count else { return nil }
    defer { nextUnit += units }
    return nextUnit
  }

  private mutating func givePiece(_ unit: Int, _ length: Int) {
    let sizeClass = Self.sizeClass(length)
    bytes.writeU32(free[sizeClass], at: unit * Self.unit)
    free[sizeClass] = UInt32(unit) + 1
  }

  // MARK: Beyond a rule set, and beyond a run

  /// Takes over what sets of the same name and type have, as far as there is room, except for those whose values the rules give.
  mutating func adopt(_ other: borrowing DataSetStore, except isGiven: [Bool]) {
    for (set, room) in rooms.enumerated() where !isGiven[set] {
      guard let old = other.rooms.firstIndex(where: { $0.name == room.name && $0.kind == room.kind }) else { continue }
      for index in 0..<other.table.count where other.table[index].hash != 0 && Int(other.table[index].set) == old {
        let entry = other.table[index]
        let start = Int(entry.place) * Self.unit
        // SAFETY: the other store stays as it is meanwhile.
        let value = unsafe other.bytes.bytes(start..<start + Int(entry.length)).bytes
        _ = insert(value, in: set, entry.reputation)
      }
    }
  }

  /// Which sets are given by the rules alone: nothing is kept of them.
  var isGiven: [Bool] { rooms.map { $0.stateFile.isEmpty && $0.used > 0 } }

  /// What is to be kept, by file: a line for each value, in order.
  var states: [(file: String, text: [UInt8])] {
    rooms.enumerated().filter { !$0.element.stateFile.isEmpty }.map { set, room in
      var lines: [[UInt8]] = []
      for index in 0..<table.count where table[index].hash != 0 && Int(table[index].set) == set {
        let start = Int(table[index].place) * Self.unit
        lines.append(
          DataSetLine.render((0..<Int(table[index].length)).map { bytes[start + $0] }, room.kind))
      }
      lines.sort { $0.lexicographicallyPrecedes($1) }
      return (String(decoding: room.stateFile, as: UTF8.self), lines.flatMap { $0 + [0x0A] })
    }
  }
}

extension PayloadMatcher {
  /// `dataset` and `datarep`, of the whole buffer.
  mutating func isInDataSet(_ record: Int, _ bytes: RawSpan, _ image: RawSpan) -> Bool {
    budget -= bytes.byteCount / 4 + 4
    let set = Int(image.u32le(OptionRecord.word(record, 0)))
    guard dataSets.takes(bytes.byteCount, in: set) else { return false }
    switch DataSetTest.Operation(rawValue: image.u8(record + OptionRecord.small2)) {
    case .isSet: return dataSets.contains(bytes, in: set)
    case .isNotSet: return !dataSets.contains(bytes, in: set)
    case .set: return dataSets.insert(bytes, in: set)
    case .unset: return dataSets.remove(bytes, from: set)
    case .reputation:
      guard let found = dataSets.reputation(of: bytes, in: set) else { return false }
      let comparison = UInt8(truncatingIfNeeded: image.u32le(OptionRecord.word(record, 1)))
      let isNegated = image.u8(record + OptionRecord.flags) & OptionRecord.isNegated != 0
      return Self.compare(UInt64(found), UInt64(image.u32le(OptionRecord.word(record, 2))), comparison) != isNegated
    case nil: return false
    }
  }
}
