import VMFenceCore

/// What rules changed in data sets, in a saved state: for each change a 1, then the set's name and type, whether the value was taken out, and the
/// value. A 0 ends them. What rule files give is not in it: the rules that a state is restored to say that.
extension DataSetStore {
  func save(limit: Int, into writer: inout ByteWriter, _ counts: inout StateCounts) {
    for index in 0..<table.count where table[index].hash != 0 {
      let entry = table[index]
      let room = rooms[Int(entry.set)]
      guard writer.count + room.name.count + Int(entry.length) + 16 <= limit else {
        counts.dataSets.dropped += 1
        continue
      }
      counts.dataSets.kept += 1
      writer.u8(1)
      writer.name(room.name)
      writer.u8(room.kind.rawValue)
      writer.flag(entry.isRemoval)
      writer.name(value(entry))
    }
    writer.u8(0)
  }

  /// Does the changes of a saved state, in a store without any.
  mutating func restore(
    from reader: inout StateReader, _ image: RawSpan, _ counts: inout StateCounts
  ) throws(EngineStateError) {
    while try reader.flag() {
      let name = try reader.text()
      guard let kind = DataSet.Kind(rawValue: try reader.u8()) else { throw StateReader.damaged("a set of no type") }
      let isRemoval = try reader.flag()
      let value = try reader.text()
      guard kind.takes(value.count) else { throw StateReader.damaged("a value that its set cannot hold") }
      // Another rule set may lack the set, give the value itself, or have less room.
      if let set = index(of: name, kind), apply(value, isRemoval: isRemoval, in: set, image) {
        counts.dataSets.kept += 1
      } else {
        counts.dataSets.dropped += 1
      }
    }
  }
}
