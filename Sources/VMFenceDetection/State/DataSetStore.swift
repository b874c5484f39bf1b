import VMFenceCore

/// What rules have added to the data sets of one detector, and taken out of them, in memory of fixed size: the values that rule files give lie
/// in the image, which detectors share, and are found there by halving.
///
/// Changes are placed by a secret key; a set that is full takes no more of them, which is counted. They belong to one detector, and so to one
/// domain. Used by one thread.
struct DataSetStore: ~Copyable {
  /// Values lie in pieces of 16, 32 … 65,536 bytes, of which those given back are used again.
  private static let unit = 16
  private static let classes = 13
  /// What finding a value takes besides it.
  private static let overhead = 48

  /// One change.
  struct Entry: BitwiseCopyable {
    /// 0: the place is free.
    var hash: UInt64 = 0
    /// In units.
    var place: UInt32 = 0
    var length: UInt32 = 0
    var set: UInt16 = 0
    /// A value of the rule file was taken out. Otherwise one that is not in it was added.
    var isRemoval = false
  }

  struct Room {
    var kind: DataSet.Kind
    var name: [UInt8]
    var stateFile: [UInt8]
    /// Bytes for changes.
    var limit: Int
    var used = 0
    /// The records of what the rule file gives, by length, then by value.
    var given: Range<Int>
  }

  private(set) var rooms: [Room] = []
  private(set) var table: ZeroedTable<Entry>
  private let mask: Int
  private var bytes: ByteStore
  private var nextUnit = 0
  /// The first piece given back of each class, as unit plus one; each holds the next in its first four bytes.
  private var free: [UInt32]
  private let hash: KeyedHash
  /// Where patterns lie in the image, and with them what rule files give.
  private let patterns: Int
  private(set) var refused: UInt64 = 0

  /// Bytes that a value of this length takes.
  static func memory(of length: Int) -> Int { unit << sizeClass(length) + overhead }

  private static func sizeClass(_ length: Int) -> Int {
    let units = (max(1, length) + unit - 1) / unit
    return units == 1 ? 0 : Int.bitWidth - (units - 1).leadingZeroBitCount
  }

  /// With the image's sets, unchanged. `key`: secret.
  init(_ sections: ImageSections, _ image: RawSpan, key: (UInt64, UInt64)) {
    var total = 0
    patterns = sections[.patterns].offset
    for index in 0..<sections[.dataSets].count {
      let record = sections[.dataSets].offset + index * DataSetRecord.stride
      func text(_ field: Int) -> [UInt8] {
        let start = sections[.patterns].offset + Int(image.u32le(record + field))
        return (0..<Int(image.u32le(record + field + 4))).map { image.u8(start + $0) }
      }
      let limit = Int(image.u32le(record + DataSetRecord.memory))
      total += limit
      let first =
        sections[.dataEntries].offset + Int(image.u32le(record + DataSetRecord.entriesStart)) * DataEntryRecord.stride
      rooms.append(
        Room(
          kind: DataSet.Kind(rawValue: UInt8(truncatingIfNeeded: image.u32le(record + DataSetRecord.kind))) ?? .string,
          name: text(DataSetRecord.name), stateFile: text(DataSetRecord.stateFile), limit: limit,
          given: first..<first + Int(image.u32le(record + DataSetRecord.entriesCount)) * DataEntryRecord.stride))
    }
    // A place and its half again for each value that there can be.
    var places = 2
    while places < total / (Self.unit + Self.overhead) * 3 / 2 + 2 { places *= 2 }
    table = ZeroedTable(count: places)
    mask = places - 1
    bytes = ByteStore(count: total + Self.unit)
    free = Array(repeating: 0, count: Self.classes)
    hash = KeyedHash(key: (key.0 ^ 0x6461_7461_7365_74, key.1 ^ 0x31))
  }

  // MARK: Values

  func takes(_ length: Int, in set: Int) -> Bool { rooms[set].kind.takes(length) }

  func contains(_ value: RawSpan, in set: Int, _ image: RawSpan) -> Bool {
    if let change = find(value, set, hash(of: value, set)) { return !table[change].isRemoval }
    return given(value, set, image) != nil
  }

  /// nil: it is not there. What was added has none.
  func reputation(of value: RawSpan, in set: Int, _ image: RawSpan) -> UInt16? {
    guard let record = given(value, set, image), contains(value, in: set, image) else { return nil }
    return UInt16(truncatingIfNeeded: image.u32le(record + DataEntryRecord.reputation))
  }

  /// False when it was there, or there is no room.
  mutating func insert(_ value: RawSpan, in set: Int, _ image: RawSpan) -> Bool {
    let hash = hash(of: value, set)
    if let change = find(value, set, hash) {
      guard table[change].isRemoval else { return false }
      forget(change)
      return true
    }
    return given(value, set, image) == nil && note(value, set, hash, isRemoval: false)
  }

  /// False when it was not there, or there is no room to remember that it is gone.
  mutating func remove(_ value: RawSpan, from set: Int, _ image: RawSpan) -> Bool {
    let hash = hash(of: value, set)
    if let change = find(value, set, hash) {
      guard !table[change].isRemoval else { return false }
      forget(change)
      return true
    }
    return given(value, set, image) != nil && note(value, set, hash, isRemoval: true)
  }

  /// The record of a value that the rule file gives.
  private func given(_ value: RawSpan, _ set: Int, _ image: RawSpan) -> Int? {
    let range = rooms[set].given
    var (low, high) = (0, range.count / DataEntryRecord.stride)
    while low < high {
      let middle = (low + high) / 2
      let record = range.lowerBound + middle * DataEntryRecord.stride
      let order = compare(value, record, image)
      if order == 0 { return record }
      if order < 0 { high = middle } else { low = middle + 1 }
    }
    return nil
  }

  /// Less than 0: the value comes before that of the record.
  private func compare(_ value: RawSpan, _ record: Int, _ image: RawSpan) -> Int {
    let length = Int(image.u32le(record + DataEntryRecord.length))
    guard length == value.byteCount else { return value.byteCount - length }
    let start = patterns + Int(image.u32le(record + DataEntryRecord.value))
    for offset in 0..<length {
      let (own, other) = (value.u8(offset), image.u8(start + offset))
      if own != other { return Int(own) - Int(other) }
    }
    return 0
  }

  // MARK: Changes

  private mutating func note(_ value: RawSpan, _ set: Int, _ hash: UInt64, isRemoval: Bool) -> Bool {
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
      hash: hash, place: UInt32(place), length: UInt32(value.byteCount), set: UInt16(set), isRemoval: isRemoval)
    return true
  }

  private mutating func forget(_ change: Int) {
    var hole = change
    let (set, length) = (Int(table[hole].set), Int(table[hole].length))
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

  /// The value of a change.
  func value(_ entry: Entry) -> [UInt8] {
    let start = Int(entry.place) * Self.unit
    return (0..<Int(entry.length)).map { bytes[start + $0] }
  }

  /// Does a change anew; false: there is no room, or no such value.
  mutating func apply(_ value: [UInt8], isRemoval: Bool, in set: Int, _ image: RawSpan) -> Bool {
    value.withRawSpan { isRemoval ? remove($0, from: set, image) : insert($0, in: set, image) }
  }

  /// The set of this name, if it is one of this type.
  func index(of name: [UInt8], _ kind: DataSet.Kind) -> Int? {
    rooms.firstIndex { $0.name == name && $0.kind == kind }
  }

  /// Does the changes of another store in the sets of the same name and type, as far as there is room.
  mutating func adopt(_ other: borrowing DataSetStore, _ image: RawSpan) {
    let sets = other.rooms.map { index(of: $0.name, $0.kind) }
    for index in 0..<other.table.count where other.table[index].hash != 0 {
      guard let set = sets[Int(other.table[index].set)] else { continue }
      _ = apply(other.value(other.table[index]), isRemoval: other.table[index].isRemoval, in: set, image)
    }
  }

  /// What is to be kept, by file: a line for each value, in order.
  func states(_ image: RawSpan) -> [(file: String, text: [UInt8])] {
    rooms.enumerated().filter { !$0.element.stateFile.isEmpty }.map { set, room in
      var lines: [[UInt8]] = []
      for index in 0..<table.count where table[index].hash != 0 && Int(table[index].set) == set {
        if !table[index].isRemoval { lines.append(DataSetLine.render(value(table[index]), room.kind)) }
      }
      for record in stride(from: room.given.lowerBound, to: room.given.upperBound, by: DataEntryRecord.stride) {
        let start = patterns + Int(image.u32le(record + DataEntryRecord.value))
        let value = image.extracting(start..<start + Int(image.u32le(record + DataEntryRecord.length)))
        if contains(value, in: set, image) { lines.append(DataSetLine.render(value.copiedBytes(), room.kind)) }
      }
      lines.sort { $0.lexicographicallyPrecedes($1) }
      return (String(decoding: room.stateFile, as: UTF8.self), lines.flatMap { $0 + [0x0A] })
    }
  }
}

extension PayloadMatcher {
  /// `dataset` and `datarep`, of the whole buffer.
  mutating func isInDataSet(_ record: Int, _ bytes: RawSpan, _ image: RawSpan) -> Bool {
    budget -= bytes.byteCount / 4 + 16
    let set = Int(image.u32le(OptionRecord.word(record, 0)))
    guard dataSets.takes(bytes.byteCount, in: set) else { return false }
    switch DataSetTest.Operation(rawValue: image.u8(record + OptionRecord.small2)) {
    case .isSet: return dataSets.contains(bytes, in: set, image)
    case .isNotSet: return !dataSets.contains(bytes, in: set, image)
    case .set: return dataSets.insert(bytes, in: set, image)
    case .unset: return dataSets.remove(bytes, from: set, image)
    case .reputation:
      guard let found = dataSets.reputation(of: bytes, in: set, image) else { return false }
      let comparison = UInt8(truncatingIfNeeded: image.u32le(OptionRecord.word(record, 1)))
      let isNegated = image.u8(record + OptionRecord.flags) & OptionRecord.isNegated != 0
      return Self.compare(UInt64(found), UInt64(image.u32le(OptionRecord.word(record, 2))), comparison) != isNegated
    case nil: return false
    }
  }
}
