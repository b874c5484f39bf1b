import VMFenceCore

/// Sets that the rules so far have named, and how their files are read.
struct DataSets {
  var known: [String: DataSet] = [:]
  /// Those that a rule adds to or takes out of.
  var changed: Set<DataSet> = []
  /// Bytes that they may take, all together.
  var memory = 0
  /// nil: rules may name no files.
  var read: (@Sendable (RuleDataFile) throws(RuleCompilationError) -> [UInt8]?)?
}

/// `dataset` and `datarep`.
extension RuleOptionParser {
  /// What a rule says of a set besides its name.
  private struct Form {
    var kind: DataSet.Kind?
    var load: ArraySlice<UInt8>?
    var save: ArraySlice<UInt8>?
    var state: ArraySlice<UInt8>?
    var memory: Int?
  }

  /// `isset|isnotset|set|unset,NAME[,type T][,load FILE][,save FILE][,state FILE][,memcap SIZE][,hashsize N]`.
  mutating func dataSet(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let items = list(try required(name, value))
    let operations: [String: DataSetTest.Operation] = [
      "isset": .isSet, "isnotset": .isNotSet, "set": .set, "unset": .unset,
    ]
    guard items.count >= 2, let operation = operations[items[0].text] else {
      throw RuleProblem(
        items[0].startIndex, "\(name.shown): \(items[0].shown) is not known",
        "write `dataset:isset|isnotset|set|unset,NAME,type TYPE,load FILE;`")
    }
    let set = try set(name, items[1], items.dropFirst(2), hasReputation: false)
    if operation.changesSet, dataSets.changed.insert(set).inserted {
      try take(set.changeMemory, set.name, at: items[1].startIndex)
    }
    add(.dataSet(DataSetTest(set: set, operation: operation)))
  }

  /// `NAME,OPERATOR,NUMBER[,load FILE][,type T][,memcap SIZE][,hashsize N]`.
  mutating func dataReputation(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let items = list(try required(name, value))
    guard items.count >= 3 else {
      throw RuleProblem(
        items[0].startIndex, "\(name.shown): \(items[0].shown) is too little",
        "write `datarep:NAME,OPERATOR,NUMBER,load FILE,type TYPE;`")
    }
    let (comparison, isNegated) = try comparison(name, items[1])
    let number = UInt16(try integer(name, items[2], 0...65_535))
    let set = try set(name, items[0], items.dropFirst(3), hasReputation: true)
    add(
      .dataSet(
        DataSetTest(
          set: set, operation: .reputation, comparison: comparison, isNegated: isNegated, reputation: number)))
  }

  private mutating func set(
    _ option: ArraySlice<UInt8>, _ name: ArraySlice<UInt8>, _ items: ArraySlice<ArraySlice<UInt8>>, hasReputation: Bool
  ) throws(RuleProblem) -> DataSet {
    guard !name.isEmpty, name.count <= 128, name.allSatisfy(RuleScanner.isNameByte) else {
      throw RuleProblem(
        name.startIndex, "\(option.shown): \(name.shown) is no name", "use letters, digits, `-`, `_`, `.`")
    }
    let form = try form(option, items)
    if let known = dataSets.known[name.text] {
      try compare(form, known, option, name)
      return known
    }
    guard let kind = form.kind else {
      throw RuleProblem(
        name.startIndex, "\(option.shown): the type of the new set \(name.shown) is missing",
        "add `type string|md5|sha256|ipv4|ip`")
    }
    guard dataSets.known.count < DataSet.setMaximum else {
      throw RuleProblem(name.startIndex, "more than \(DataSet.setMaximum) data sets", "use fewer of them")
    }
    let source = source(form)
    let set = DataSet(
      name: name.text, kind: kind, entries: try entries(option, form, source, kind, hasReputation), limit: form.memory,
      source: source, stateFile: (form.state ?? form.save).map(\.text))
    guard set.memory <= form.memory ?? .max else {
      throw RuleProblem(
        name.startIndex,
        "\(option.shown): the set \(name.shown) needs \(set.memory) bytes and may take \(form.memory ?? 0)",
        "give it a larger memcap, or fewer values")
    }
    try take(set.memory, set.name, at: name.startIndex)
    dataSets.known[name.text] = set
    return set
  }

  /// Counts what a set may take.
  private mutating func take(_ memory: Int, _ name: String, at offset: Int) throws(RuleProblem) {
    dataSets.memory += memory
    guard dataSets.memory <= DataSet.memoryMaximum else {
      throw RuleProblem(
        offset,
        "with the \(memory) bytes of the set `\(name.escapedForDisplay)` all sets take \(dataSets.memory), and may take \(DataSet.memoryMaximum)",
        "give it a smaller memcap, or fewer values")
    }
  }

  /// What a later rule says of a set must be what the first one said: nothing of it would come true.
  private func compare(
    _ form: Form, _ known: DataSet, _ option: ArraySlice<UInt8>, _ name: ArraySlice<UInt8>
  ) throws(RuleProblem) {
    guard form.kind == nil || form.kind == known.kind else {
      throw RuleProblem(
        name.startIndex, "\(option.shown): \(name.shown) is a set of type \(known.kind)",
        "name another set, or this type")
    }
    let stateFile = (form.state ?? form.save).map(\.text)
    for (given, isOther, what) in [
      (form.load ?? form.state, source(form) != known.source, "read from this file"),
      (form.state ?? form.save, stateFile != known.stateFile, "kept in this file"),
    ] {
      guard let given, isOther else { continue }
      throw RuleProblem(
        given.startIndex, "\(option.shown): the set \(name.shown) of an earlier rule is not \(what)",
        "say it where the set is named first, or name another set")
    }
    if let memory = form.memory, memory != known.limit {
      throw RuleProblem(
        name.startIndex, "\(option.shown): the set \(name.shown) of an earlier rule has another memcap",
        "say it where the set is named first, or name another set")
    }
  }

  private func form(
    _ option: ArraySlice<UInt8>, _ items: ArraySlice<ArraySlice<UInt8>>
  ) throws(RuleProblem) -> Form {
    var form = Form()
    for item in items {
      guard let argument = arguments(item).first else { continue }
      switch argument.text {
      case "type":
        let text = try required(argument.name, argument.value)
        form.kind = DataSet.Kind.allCases.first { text.text == "\($0)" }
        if form.kind == nil {
          throw RuleProblem(
            text.startIndex, "\(option.shown): \(text.shown) is no type", "use string, md5, sha256, ipv4 or ip")
        }
      case "load": form.load = try required(argument.name, argument.value)
      case "state", "save":
        let file = try required(argument.name, argument.value)
        guard file.count <= 255 else {
          throw RuleProblem(file.startIndex, "\(option.shown): a name of \(file.count) bytes", "write 255 at the most")
        }
        guard file.first != UInt8(ascii: "/"),
          !file.split(separator: UInt8(ascii: "/")).contains(where: { $0.isText("..") })
        else {
          throw RuleProblem(
            file.startIndex, "\(option.shown): \(file.shown) leaves the folder of what is kept",
            "write a name without `/` before it and without `..`")
        }
        if argument.text == "save" { form.save = file } else { form.state = file }
      case "memcap": form.memory = try size(argument)
      // Tables grow with what they hold.
      case "hashsize": _ = try integer(argument.name, argument.value, 1...0xFFFF_FFFF)
      default:
        throw RuleProblem(
          item.startIndex, "\(option.shown): \(item.shown) is not known",
          "use type, load, save, state, memcap or hashsize")
      }
    }
    if form.load ?? form.save != nil, let state = form.state {
      throw RuleProblem(
        state.startIndex, "\(option.shown): `state` and `load` or `save` exclude each other",
        "`state` is both, with one file")
    }
    return form
  }

  private func size(_ argument: Argument) throws(RuleProblem) -> Int {
    let text = try required(argument.name, argument.value)
    let digits = text.prefix { (0x30...0x39).contains($0) }
    let units: [String: Int] = ["": 0, "b": 0, "kb": 10, "mb": 20, "gb": 30]
    guard let number = Int(digits.text), let shift = units[text[digits.endIndex...].trimmed.text.lowercased()],
      number > 0, number <= DataSet.memoryMaximum >> shift
    else {
      throw RuleProblem(
        text.startIndex, "memcap: \(text.shown) is no size up to \(DataSet.memoryMaximum >> 20)mb",
        "write a number, and kb or mb")
    }
    return number << shift
  }

  private func source(_ form: Form) -> RuleDataFile? {
    if let file = form.state { return .state(name: file.text) }
    guard let file = form.load else { return nil }
    let folder = place(file.startIndex).file.split(separator: "/", omittingEmptySubsequences: false).dropLast()
    let isAlone = file.first == UInt8(ascii: "/") || folder.isEmpty
    return .values(path: isAlone ? file.text : folder.joined(separator: "/") + "/" + file.text)
  }

  private func entries(
    _ option: ArraySlice<UInt8>, _ form: Form, _ source: RuleDataFile?, _ kind: DataSet.Kind, _ hasReputation: Bool
  ) throws(RuleProblem) -> [DataSet.Entry] {
    guard let source, let file = form.load ?? form.state else { return [] }
    let shown = file.shown
    let read: [UInt8]?
    do throws(RuleCompilationError) { read = try dataSets.read?(source) } catch {
      throw RuleProblem(
        file.startIndex, "\(option.shown): the file \(shown) cannot be read: \(error.message)",
        "name another, or mend it")
    }
    guard let bytes = read else {
      // Nothing was kept yet.
      if form.load == nil { return [] }
      throw RuleProblem(
        file.startIndex, "\(option.shown): the file \(shown) cannot be read: there is none",
        "paths are relative to the rule file's folder")
    }
    var entries: [DataSet.Entry] = []
    for (index, line) in bytes.split(separator: 0x0A, omittingEmptySubsequences: false).enumerated() {
      let text = line.trimmed
      if text.isEmpty || text.first == UInt8(ascii: "#") { continue }
      guard entries.count < DataSet.entryMaximum,
        let entry = DataSetLine.parse(text, kind, hasReputation: hasReputation)
      else {
        throw RuleProblem(
          file.startIndex,
          "\(option.shown): line \(index + 1) of \(shown) is no value of type \(kind)\(hasReputation ? " with a reputation" : ""), or one of more than \(DataSet.entryMaximum)",
          "strings are written in base64, digests in hexadecimal, a reputation after a comma")
      }
      entries.append(entry)
    }
    return entries
  }
}
