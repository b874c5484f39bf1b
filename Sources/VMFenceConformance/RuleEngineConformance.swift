public import Testing
public import VMFenceCore

/// What every `RuleEngine`, its `CompiledRules` and its `PacketInspector` must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isARuleEngine() throws {
///       try RuleEngineConformance().check(MyEngine(), inspector: MyInspector.self)
///     }
///
/// The texts are Snort rules unless others are given, so an engine with a language of its own can be checked too.
public struct RuleEngineConformance: Sendable {
  /// Rule texts in the engine's language.
  public struct Texts: Sendable {
    /// One rule, gid 1, sid 1000001, rev 3, message "conformance", that fires on a UDP datagram to port 9999 whose payload contains
    /// `conformance-attack`.
    public var matching: String
    /// One rule, gid 1, sid 1000002, that fires on `another-attack` in the same place.
    public var other: String
    /// One rule that no engine can accept, on one line.
    public var bad: String

    public init(matching: String, other: String, bad: String) {
      self.matching = matching
      self.other = other
      self.bad = bad
    }

    public static let snort = Texts(
      matching:
        #"alert udp any any -> any 9999 (msg:"conformance"; content:"conformance-attack"; sid:1000001; rev:3;)"#,
      other: #"alert udp any any -> any 9999 (msg:"other"; content:"another-attack"; sid:1000002; rev:1;)"#,
      bad: #"alert udp any any -> any 9999 (msg:"bad"; content:; sid:1000003;)"#)
  }

  public var texts: Texts
  public var dialect: RuleDialect?
  /// How many random, cut and changed frames and images are tried.
  public var effort: Int
  /// Where the pseudo-random bytes begin; the same seed gives the same bytes.
  public var seed: UInt64

  public init(texts: Texts = .snort, dialect: RuleDialect? = .snort2, effort: Int = 2_000, seed: UInt64 = 1) {
    self.texts = texts
    self.dialect = dialect
    self.effort = effort
    self.seed = seed
  }

  /// Checks: what compiles is counted and described; equal input gives equal bytes; an image taken over elsewhere behaves equally;
  /// a bad rule is skipped or fails the whole, as asked, with its place; nothing usable is an error; a damaged image is refused or
  /// harmless; any bytes are inspected without a trap; the same frames give the same output; rules can be replaced.
  ///
  /// - Throws: what the engine throws where it must not.
  public func check<Engine: RuleEngine, Inspector: PacketInspector & ~Copyable>(
    _ engine: Engine, inspector: Inspector.Type, sourceLocation: SourceLocation = #_sourceLocation
  ) throws where Inspector.Rules == Engine.Rules {
    try checkCompilation(engine, sourceLocation)
    try checkDeterminism(engine, sourceLocation)
    try checkBadRules(engine, sourceLocation)
    try checkInspection(engine, inspector, sourceLocation)
    try checkImage(engine, inspector, sourceLocation)
    try checkDamagedImages(engine, inspector, sourceLocation)
    try checkHostileFrames(engine, inspector, sourceLocation)
    try checkReplacement(engine, inspector, sourceLocation)
  }

  private func request(
    _ lines: [String], _ onBadRule: RuleCompilationRequest.OnBadRule = .skip
  ) -> RuleCompilationRequest {
    RuleCompilationRequest(
      sources: [
        RuleSource(
          file: "conformance.rules", text: Array((lines.joined(separator: "\n") + "\n").utf8), dialect: dialect)
      ], onBadRule: onBadRule)
  }

  // MARK: Compiling

  private func checkCompilation(_ engine: some RuleEngine, _ location: SourceLocation) throws {
    let compilation = try engine.compile(request([texts.matching, texts.other]))
    #expect(compilation.loaded == 2, "two good rules, \(compilation.loaded) loaded", sourceLocation: location)
    #expect(compilation.rejected == 0, "a good rule is rejected", sourceLocation: location)
    #expect(
      !compilation.diagnostics.contains { $0.severity == .error }, "an error although all is well",
      sourceLocation: location)
    let rules = compilation.rules
    #expect(rules.ruleCount == 2, "two rules, ruleCount \(rules.ruleCount)", sourceLocation: location)
    let described = (0..<rules.ruleCount).map { rules.metadata(at: $0) }
    let matching = described.first { $0.sid == 1_000_001 }
    #expect(matching?.gid == 1 && matching?.revision == 3, "gid or rev got lost", sourceLocation: location)
    #expect(matching?.message == "conformance", "the message got lost", sourceLocation: location)
    #expect(described.contains { $0.sid == 1_000_002 }, "a rule is not described", sourceLocation: location)
    #expect(rules.image.byteCount > 0, "the image is empty", sourceLocation: location)
  }

  private func checkDeterminism(_ engine: some RuleEngine, _ location: SourceLocation) throws {
    let lines = [texts.matching, texts.other]
    let first = try engine.compile(request(lines))
    let second = try engine.compile(request(lines))
    #expect(
      first.rules.image.copiedBytes() == second.rules.image.copiedBytes(),
      "two compilations of equal input give other bytes", sourceLocation: location)
    #expect(first.diagnostics == second.diagnostics, "and other diagnostics", sourceLocation: location)
  }

  private func checkBadRules(_ engine: some RuleEngine, _ location: SourceLocation) throws {
    let lines = [texts.matching, texts.bad, texts.other]
    let skipped = try engine.compile(request(lines))
    #expect(
      skipped.loaded == 2 && skipped.rejected == 1, "loaded \(skipped.loaded), rejected \(skipped.rejected) of 2 and 1",
      sourceLocation: location)
    #expect(skipped.rules.ruleCount == 2, "a bad rule is among the rules", sourceLocation: location)
    checkErrors(skipped.diagnostics, location)

    let failure = #expect(
      throws: RuleCompilationError.self, "a bad rule does not fail what was to fail", sourceLocation: location
    ) { try engine.compile(request(lines, .fail)) }
    if let failure {
      #expect(failure.code == .badRule, "another code: \(failure.code.name)", sourceLocation: location)
      checkErrors(failure.diagnostics, location)
    }
    for lines in [[texts.bad], [], ["", "# nothing here"]] {
      let nothing = #expect(
        throws: RuleCompilationError.self, "nothing usable is no error: \(lines)", sourceLocation: location
      ) { try engine.compile(request(lines)) }
      if let nothing {
        #expect(nothing.code == .noRules, "another code: \(nothing.code.name)", sourceLocation: location)
      }
    }
  }

  private func checkErrors(_ diagnostics: [Diagnostic], _ location: SourceLocation) {
    let errors = diagnostics.filter { $0.severity == .error }
    #expect(errors.count == 1, "one bad rule, \(errors.count) errors", sourceLocation: location)
    let place = errors.first?.place
    #expect(
      place?.file == "conformance.rules" && place?.line == 2, "the error is said to be at \(place?.description ?? "-")",
      sourceLocation: location)
  }

  // MARK: Inspecting

  /// A frame to inspect, and the sids that must fire on it.
  private struct Case {
    var frame: ConformanceFrame
    var sids: [UInt32]
  }

  private var cases: [Case] {
    [
      Case(frame: .udp(payload: "xx conformance-attack yy"), sids: [1_000_001]),
      Case(frame: .udp(payload: "conformance attack"), sids: []),
      Case(frame: .udp(payload: "another-attack"), sids: [1_000_002]),
      Case(frame: .udp(payload: "conformance-attack", port: 9_998), sids: []),
      Case(frame: .udp(payload: "conformance-attack another-attack"), sids: [1_000_001, 1_000_002]),
      Case(frame: .udp(payload: ""), sids: []),
    ]
  }

  private func inspect<Inspector: PacketInspector & ~Copyable>(
    _ inspector: inout Inspector, _ frame: ConformanceFrame, _ output: inout InspectionOutput
  ) -> [AlertRecord] {
    output.reset()
    frame.bytes.withRawSpan { inspector.inspect(frame.metadata, $0, into: &output) }
    return (0..<output.count).map { output[$0] }
  }

  private func checkInspection<Engine: RuleEngine, Inspector: PacketInspector & ~Copyable>(
    _ engine: Engine, _ type: Inspector.Type, _ location: SourceLocation
  ) throws where Inspector.Rules == Engine.Rules {
    let rules = try engine.compile(request([texts.matching, texts.other])).rules
    var inspector = try Inspector.make(rules: rules, configuration: InspectorConfiguration())
    var output = InspectionOutput()
    for (index, item) in cases.enumerated() {
      let alerts = inspect(&inspector, item.frame, &output)
      let sids = alerts.map { Int($0.ruleIndex) < rules.ruleCount ? rules.metadata(at: Int($0.ruleIndex)).sid : 0 }
      #expect(sids.sorted() == item.sids, "frame \(index): fired \(sids)", sourceLocation: location)
      for alert in alerts {
        #expect(alert.timestamp == item.frame.metadata.timestamp, "another time", sourceLocation: location)
        #expect(
          alert.source == ConformanceFrame.source && alert.destination == ConformanceFrame.destination,
          "other addresses", sourceLocation: location)
        #expect(alert.destinationPort == 9_999 && alert.ipProtocol == 17, "another port", sourceLocation: location)
      }
      #expect(output.verdict == .pass, "an alert rule drops", sourceLocation: location)
    }
    let names = inspector.statistics.map(\.name)
    _ = inspect(&inspector, cases[0].frame, &output)
    #expect(inspector.statistics.map(\.name) == names, "the counters change their names", sourceLocation: location)
    #expect(Set(names).count == names.count, "two counters have one name", sourceLocation: location)
    let shown = Engine.Rules.inspectorCounters
    var values: [UInt64] = []
    inspector.forEachCounter { values.append($0) }
    #expect(values.count == shown.count, "a counter without a name, or a name without one", sourceLocation: location)
    #expect(shown.count <= 128, "more counters than a detector can show", sourceLocation: location)
    #expect(Set(shown.map(\.name)).count == shown.count, "two counters have one name", sourceLocation: location)
    for counter in shown {
      #expect(
        !counter.name.isEmpty
          && counter.name.utf8.allSatisfy { (97...122).contains($0) || (48...57).contains($0) || $0 == 95 },
        "`\(counter.name)` is no name for a counter", sourceLocation: location)
    }
  }

  /// What a detector in another process does with the image.
  private func checkImage<Engine: RuleEngine, Inspector: PacketInspector & ~Copyable>(
    _ engine: Engine, _ type: Inspector.Type, _ location: SourceLocation
  ) throws where Inspector.Rules == Engine.Rules {
    let rules = try engine.compile(request([texts.matching, texts.other])).rules
    let copy = try Engine.Rules(image: .copy(rules.image.copiedBytes()))
    #expect(copy.ruleCount == rules.ruleCount, "an image has another number of rules", sourceLocation: location)
    guard copy.ruleCount == rules.ruleCount else { return }
    for index in 0..<rules.ruleCount {
      #expect(
        copy.metadata(at: index) == rules.metadata(at: index), "rule \(index) is described otherwise",
        sourceLocation: location)
    }
    #expect(
      copy.image.copiedBytes() == rules.image.copiedBytes(), "taking over an image changes it", sourceLocation: location
    )
    let configuration = InspectorConfiguration()
    var original = try Inspector.make(rules: rules, configuration: configuration)
    var taken = try Inspector.make(rules: copy, configuration: configuration)
    var output = InspectionOutput()
    for item in cases {
      let expected = inspect(&original, item.frame, &output).map(Fingerprint.init)
      let got = inspect(&taken, item.frame, &output).map(Fingerprint.init)
      #expect(expected == got, "rules from an image give another output", sourceLocation: location)
    }
  }

  private func checkReplacement<Engine: RuleEngine, Inspector: PacketInspector & ~Copyable>(
    _ engine: Engine, _ type: Inspector.Type, _ location: SourceLocation
  ) throws where Inspector.Rules == Engine.Rules {
    let matching = try engine.compile(request([texts.matching])).rules
    let other = try engine.compile(request([texts.other])).rules
    var inspector = try Inspector.make(rules: matching, configuration: InspectorConfiguration())
    var output = InspectionOutput()
    let frame = cases[0].frame
    #expect(inspect(&inspector, frame, &output).count == 1, "the rule does not fire", sourceLocation: location)
    for _ in 0..<3 {
      try inspector.replaceRules(with: other)
      #expect(inspect(&inspector, frame, &output).isEmpty, "an old rule still fires", sourceLocation: location)
      #expect(inspect(&inspector, cases[2].frame, &output).count == 1, "a new rule is silent", sourceLocation: location)
      try inspector.replaceRules(with: matching)
      #expect(inspect(&inspector, frame, &output).count == 1, "a rule does not come back", sourceLocation: location)
    }
  }

  // MARK: Hostile input

  /// An image that was cut is refused. One with changed bytes is refused, or what it makes is usable without a trap.
  private func checkDamagedImages<Engine: RuleEngine, Inspector: PacketInspector & ~Copyable>(
    _ engine: Engine, _ type: Inspector.Type, _ location: SourceLocation
  ) throws where Inspector.Rules == Engine.Rules {
    let image = try engine.compile(request([texts.matching, texts.other])).rules.image.copiedBytes()
    var random = ConformanceRandom(seed: seed)
    for step in 0..<64 {
      let cut = step < 16 ? min(step, image.count - 1) : Int(random.next() % UInt64(image.count))
      #expect(
        throws: RuleCompilationError.self, "an image cut after \(cut) of \(image.count) bytes is taken",
        sourceLocation: location
      ) { try Engine.Rules(image: .copy(Array(image[..<cut]))) }
    }
    for length in [1, 64, 4_096, image.count] {
      let noise = (0..<length).map { _ in UInt8(truncatingIfNeeded: random.next()) }
      #expect(throws: RuleCompilationError.self, "noise is taken for an image", sourceLocation: location) {
        try Engine.Rules(image: .copy(noise))
      }
    }
    var output = InspectionOutput()
    for _ in 0..<effort / 4 {
      var damaged = image
      for _ in 0...Int(random.next() % 4) {
        // Headers come first, and are where a wrong number does the most harm.
        let range = random.next() % 2 == 0 ? UInt64(min(512, image.count)) : UInt64(image.count)
        damaged[Int(random.next() % range)] = UInt8(truncatingIfNeeded: random.next())
      }
      guard let rules = try? Engine.Rules(image: .copy(damaged)),
        rules.ruleCount < 1 << 20
      else { continue }
      for index in 0..<rules.ruleCount { _ = rules.metadata(at: index) }
      do {
        var inspector = try Inspector.make(rules: rules, configuration: InspectorConfiguration(flowCapacity: 16))
        for item in cases { _ = inspect(&inspector, item.frame, &output) }
      } catch {
        continue
      }
    }
  }

  /// Whatever bytes come, the inspector does not trap, and the same bytes give the same output.
  private func checkHostileFrames<Engine: RuleEngine, Inspector: PacketInspector & ~Copyable>(
    _ engine: Engine, _ type: Inspector.Type, _ location: SourceLocation
  ) throws where Inspector.Rules == Engine.Rules {
    let rules = try engine.compile(request([texts.matching, texts.other])).rules
    let configuration = InspectorConfiguration(flowCapacity: 64)
    var first = try Inspector.make(rules: rules, configuration: configuration)
    var second = try Inspector.make(rules: rules, configuration: configuration)
    var output = InspectionOutput()
    var random = ConformanceRandom(seed: seed &+ 1)
    for number in 0..<effort {
      let frame = ConformanceFrame.hostile(number, &random)
      let one = inspect(&first, frame, &output).map(Fingerprint.init)
      let two = inspect(&second, frame, &output).map(Fingerprint.init)
      #expect(one == two, "the same frame gives another output", sourceLocation: location)
      #expect(
        one.allSatisfy { Int($0.ruleIndex) < rules.ruleCount }, "a rule fires that is not there",
        sourceLocation: location)
    }
    #expect(
      inspect(&first, cases[0].frame, &output).count == 1, "after hostile frames the inspector is blind",
      sourceLocation: location)
  }
}

/// What of an alert is compared.
private struct Fingerprint: Equatable {
  var timestamp: Timestamp
  var ruleIndex: UInt32
  var flowID: UInt64
  var source: IPAddress
  var destination: IPAddress
  var flags: UInt8
  var excerpt: [UInt8]

  init(_ record: AlertRecord) {
    timestamp = record.timestamp
    ruleIndex = record.ruleIndex
    flowID = record.flowID
    source = record.source
    destination = record.destination
    flags = record.flags.rawValue
    excerpt = (0..<min(Int(record.excerptLength), AlertRecord.excerptCapacity)).map { record.excerpt[$0] }
  }
}

extension RuleImage {
  fileprivate func copiedBytes() -> [UInt8] { withBytes { $0.copiedBytes() } }

  fileprivate static func copy(_ bytes: [UInt8]) -> RuleImage { bytes.withRawSpan { RuleImage(copying: $0) } }
}
