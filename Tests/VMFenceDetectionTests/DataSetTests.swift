import Testing
import VMFenceCore
import VMFenceDetection

/// `dataset` and `datarep`: buffers looked up in sets of values.
@Suite struct DataSetTests {
  private static let files: [RuleDataFile: String] = [
    .values(path: "rules/names.lst"): "dXNlcg==\n# a comment\n\ncm9vdA==\r\n",
    .values(path: "/etc/md5.lst"): "900150983cd24fb0d6963f7d28e17f72\n",
    .values(path: "rules/hosts.lst"): "192.0.2.1\n2001:db8::5\n::ffff:192.0.2.9\n",
    .values(path: "rules/names.rep"): "dXNlcg==,70\ncm9vdA==,200\n",
    .values(path: "rules/bad.lst"): "dXNlcg==\nnot base64!\n",
    .values(path: "rules/twice.rep"): "dXNlcg==,5\ncm9vdA==,7\ndXNlcg==,6\n",
    .state(name: "seen.lst"): "b2xk\n",
  ]

  private func compile(_ text: String) throws -> RuleCompilation<SnortRules> {
    var engine = SnortRuleEngine()
    engine.readData = { Self.files[$0].map { Array($0.utf8) } }
    return try engine.compile(
      RuleCompilationRequest(sources: [
        RuleSource(file: "rules/test.rules", text: Array(text.utf8), dialect: .suricata)
      ]))
  }

  private func engine(_ options: String...) throws -> EngineUnderTest {
    let text = options.enumerated().map { "alert ip any any -> any any (\($1) sid:\($0 + 1);)" }.joined(separator: "\n")
    let result = try compile(text)
    try #require(result.rejected == 0, "\(result.diagnostics)")
    return try EngineUnderTest(result.rules, settings: EngineUnderTest.immediate)
  }

  @Test(arguments: [
    ("pkt_data; dataset:isset,n,type string,load names.lst;", "user", true),
    ("pkt_data; dataset:isset,n,type string,load names.lst;", "root", true),
    ("pkt_data; dataset:isset,n,type string,load names.lst;", "roo", false),
    ("pkt_data; dataset:isset,n,type string,load names.lst;", "user1", false),
    ("pkt_data; dataset:isnotset,n,type string,load names.lst;", "user1", true),
    ("pkt_data; dataset:isnotset,n,type string,load names.lst;", "user", false),
    ("pkt_data; to_md5; dataset:isset,m,type md5,load /etc/md5.lst;", "abc", true),
    ("pkt_data; to_md5; dataset:isset,m,type md5,load /etc/md5.lst;", "abd", false),
    // A buffer that cannot be a value is neither in the set nor not in it.
    ("pkt_data; dataset:isset,m,type md5,load /etc/md5.lst;", "abc", false),
    ("pkt_data; dataset:isnotset,m,type md5,load /etc/md5.lst;", "abc", false),
    ("ip.src; dataset:isset,h,type ip,load hosts.lst;", "x", true),
    ("ip.dst; dataset:isset,h,type ip,load hosts.lst;", "x", false),
    ("pkt_data; datarep:r,>,100,load names.rep,type string;", "root", true),
    ("pkt_data; datarep:r,>,100,load names.rep,type string;", "user", false),
    ("pkt_data; datarep:r,<,100,load names.rep,type string;", "user", true),
    ("pkt_data; datarep:r,=,70,load names.rep,type string,memcap 1mb,hashsize 64;", "user", true),
    ("pkt_data; datarep:r,<,100,load names.rep,type string;", "nobody", false),
  ])
  func `a buffer is looked up whole`(options: String, payload: String, fires: Bool) throws {
    var engine = try engine(options)
    #expect(engine.inspect(Frame().carrying(payload).udp) == (fires ? [1] : []))
  }

  @Test func `addresses of both families, and one within the other`() throws {
    var engine = try engine("ip.src; dataset:isset,h,type ip,load hosts.lst;")
    #expect(engine.inspect(Frame(source: "2001:db8::5", destination: "2001:db8::6").carrying("x").udp) == [1])
    #expect(engine.inspect(Frame(source: "192.0.2.9").carrying("x").udp) == [1])
    #expect(engine.inspect(Frame(source: "192.0.2.10").carrying("x").udp) == [])
  }

  @Test func `what is new is added and told once, and can be taken out`() throws {
    var engine = try engine(
      "content:\"a\"; pkt_data; dataset:set,seen,type string;",
      "content:\"-\"; pkt_data; subslice:1; dataset:unset,seen;")
    let frames = ["a1", "a2", "a1", "-a1", "-a1", "a1"].map { Frame().carrying($0).udp }
    // "-a1" has an "a" too: it is added as itself.
    #expect(engine.inspect(frames) == [[1], [1], [], [1, 2], [], [1]])
    #expect(engine.statistic("dataset_values_refused") == 0)
  }

  @Test func `a set that is full takes no more, and goes on with what it has`() throws {
    var engine = try engine("pkt_data; dataset:set,seen,type string,memcap 1kb;")
    // 64 bytes each: 16 of them.
    let found = engine.inspect((10..<40).map { Frame().carrying("\($0)").udp })
    #expect(found.count { $0 == [1] } == 16 && engine.statistic("dataset_values_refused") == 14)
    #expect(engine.inspect(Frame().carrying("10").udp) == [])
  }

  @Test func `values taken out make room, whatever the order`() throws {
    var engine = try engine(
      "content:!\"-\"; pkt_data; dataset:set,seen,type string,memcap 64kb;",
      "content:\"-\"; pkt_data; subslice:1; dataset:unset,seen;")
    var generator = SeededGenerator(seed: 7)
    var model: Set<String> = []
    for _ in 0..<4000 {
      let value =
        String(repeating: "v", count: Int.random(in: 1...60, using: &generator))
        + "\(Int.random(in: 0..<9, using: &generator))"
      if Bool.random(using: &generator) {
        let isNew = model.insert(value).inserted
        #expect(engine.inspect(Frame().carrying(value).udp) == (isNew ? [1] : []))
      } else {
        let wasThere = model.remove(value) != nil
        #expect(engine.inspect(Frame().carrying("-" + value).udp) == (wasThere ? [2] : []))
      }
    }
  }

  @Test func `state begins with its file, outlives a change of rules, and is given out in the file's form`() throws {
    let options = "pkt_data; dataset:set,seen,type string,state seen.lst;"
    var engine = try engine(options)
    #expect(engine.inspect(["old", "new", "new"].map { Frame().carrying($0).udp }) == [[], [1], []])
    let text = try #require(engine.inspector.dataSetStates.first)
    #expect(text.file == "seen.lst" && String(decoding: text.text, as: UTF8.self) == "b2xk\nbmV3\n")
    let other = try compile("alert ip any any -> any any (\(options) sid:9;)")
    try engine.inspector.replaceRules(with: other.rules)
    engine.rules = other.rules
    #expect(engine.inspect(["new", "newer"].map { Frame().carrying($0).udp }) == [[], [9]])
  }

  @Test func `what a file gives is shared, and what rules change in it outlives a change of rules and a saved state`()
    throws
  {
    let options = [
      "content:!\"-\"; pkt_data; dataset:set,n,type string,load names.lst;",
      "content:\"-\"; pkt_data; subslice:1; dataset:unset,n;",
    ]
    let text = options.enumerated().map { "alert ip any any -> any any (\($1) sid:\($0 + 1);)" }.joined(separator: "\n")
    let frames = ["user", "-user", "new", "user", "-user", "-root", "-absent"].map { Frame().carrying($0).udp }
    let later = ["user", "root", "new", "-new", "-user"].map { Frame().carrying($0).udp }
    let (first, last): ([[UInt32]], [[UInt32]]) = ([[], [2], [1], [1], [2], [2], []], [[1], [1], [], [2], [2]])
    let rules = try compile(text).rules
    var engine = try EngineUnderTest(rules, settings: EngineUnderTest.immediate)
    #expect(engine.inspect(frames) == first)
    let saved = engine.inspector.saveState(at: engine.now, limit: 1 << 16)
    #expect(saved.report.items.contains { $0.name == "changes of data sets" && $0.kept == 3 && $0.dropped == 0 })
    // Another guest with the same rules knows nothing of it.
    var other = try EngineUnderTest(rules, settings: EngineUnderTest.immediate)
    #expect(other.inspect(frames) == first)
    // The same guest goes on elsewhere.
    var next = try EngineUnderTest(rules, hashKey: (9, 9), settings: EngineUnderTest.immediate)
    let report = try next.inspector.restoreState(saved.bytes, at: nil)
    #expect(report.items.allSatisfy { $0.dropped == 0 })
    #expect(next.inspect(later) == last)
    // And with new rules, here.
    let changed = try compile(text + "\nalert ip any any -> any any (content:\"zzz\"; sid:3;)").rules
    try engine.inspector.replaceRules(with: changed)
    engine.rules = changed
    #expect(engine.inspect(later) == last)
  }

  @Test func `a saved state has as many changes as fit, and says how many did not`() throws {
    let engine = { try self.engine("pkt_data; dataset:set,seen,type string;") }
    var first = try engine()
    _ = first.inspect((100..<200).map { Frame().carrying("value \($0)").udp })
    for limit in 1400..<1480 {
      let saved = first.inspector.saveState(at: first.now, limit: limit)
      #expect(saved.bytes.count <= limit, "a state that is too long is lost")
    }
    let saved = first.inspector.saveState(at: first.now, limit: 1500)
    let item = try #require(saved.report.items.first { $0.name == "changes of data sets" })
    #expect(item.kept > 10 && item.kept + item.dropped == 100)
    var second = try engine()
    let report = try second.inspector.restoreState(saved.bytes, at: nil)
    #expect(report.items.contains { $0.name == "changes of data sets" && $0.kept == item.kept })
    let told = second.inspect((100..<200).map { Frame().carrying("value \($0)").udp }).count { $0 == [1] }
    #expect(told == 100 - item.kept)
  }

  @Test func `one that is only saved begins empty, one that is loaded and saved with what it is given`() throws {
    for (option, expected) in [
      ("save out.lst", [[1], [1]]), ("load names.lst,save out.lst", [[], [1]]),
    ] as [(String, [[UInt32]])] {
      var engine = try engine("pkt_data; dataset:set,seen,type string,\(option);")
      #expect(engine.inspect(["user", "new"].map { Frame().carrying($0).udp }) == expected)
      let kept = try #require(engine.inspector.dataSetStates.first)
      let lines = String(decoding: kept.text, as: UTF8.self).split(separator: "\n").map(String.init)
      #expect(
        kept.file == "out.lst"
          && lines == (expected[0] == [] ? ["bmV3", "cm9vdA==", "dXNlcg=="] : ["bmV3", "dXNlcg=="]))
    }
  }

  @Test func `of a value that a file gives twice the first line counts`() throws {
    var engine = try engine("pkt_data; datarep:r,=,5,load twice.rep,type string;")
    #expect(engine.inspect(Frame().carrying("user").udp) == [1])
  }

  @Test(arguments: [
    ("dataset:isset,n;", "type of the new set"), ("dataset:isset;", "is not known"),
    ("dataset:has,n,type ip;", "is not known"),
    ("dataset:isset,n,type words;", "is no type"), ("dataset:isset,n,type string,load no.lst;", "cannot be read"),
    ("dataset:isset,n,type string,load bad.lst;", "line 2"),
    ("dataset:isset,n,type string,colour red;", "is not known"),
    ("dataset:set,n,type string,state ../x;", "leaves the folder"),
    ("dataset:set,n,type string,state /x;", "leaves the folder"),
    ("dataset:set,n,type string,load names.lst,state x;", "exclude each other"),
    ("dataset:set,n,type string,save y,state x;", "exclude each other"),
    ("dataset:isset,n,type string; dataset:isset,n,load names.lst;", "is not read from this file"),
    ("dataset:isset,n,type string; dataset:set,n,save a;", "is not kept in this file"),
    ("dataset:isset,n,type string,memcap 1mb; dataset:set,n,memcap 2mb;", "has another memcap"),
    ("dataset:set,n,type string,memcap 200mb; dataset:set,m,type string,memcap 57mb;", "all sets take"),
    ("dataset:set,n,type string,memcap 1tb;", "is no size"), ("dataset:set,n,type string,memcap 300mb;", "is no size"),
    ("dataset:isset,n,type string,load names.lst,memcap 100;", "needs 128 bytes"),
    ("datarep:r,>;", "is too little"), ("datarep:r,~,5,type ip;", "is no operator"),
    ("datarep:r,>,5,type string,load names.lst;", "with a reputation"),
    ("dataset:isset,n,type ip,load hosts.lst; dataset:isset,n,type string;", "is a set of type ip"),
  ])
  func `a set that cannot be is a mistake with its place`(options: String, message: String) throws {
    let error = #expect(throws: RuleCompilationError.self) {
      try compile("alert ip any any -> any any (pkt_data; \(options) sid:1;)")
    }
    let diagnostic = try #require(error?.diagnostics.first { $0.severity == .error })
    #expect(diagnostic.message.contains(message), "\(diagnostic)")
    #expect(diagnostic.place?.line == 1 && (diagnostic.place?.column ?? 0) > 30)
  }

  @Test(arguments: ["load x.lst", "state x.lst"])
  func `why a file cannot be read is said, and what it is of is not taken for empty`(source: String) throws {
    var engine = SnortRuleEngine()
    engine.readData = { (_: RuleDataFile) throws(RuleCompilationError) -> [UInt8]? in
      throw RuleCompilationError(.inputOutput, "Is a directory")
    }
    let text = "alert ip any any -> any any (pkt_data; dataset:isset,n,type string,\(source); sid:1;)"
    let error = #expect(throws: RuleCompilationError.self) {
      try engine.compile(
        RuleCompilationRequest(sources: [RuleSource(file: "x.rules", text: Array(text.utf8), dialect: .suricata)]))
    }
    #expect(
      error?.diagnostics.contains {
        $0.message.contains("the file `x.lst` cannot be read: Is a directory") && $0.place?.line == 1
      } == true, "\(error?.diagnostics ?? [])")
  }

  @Test func `without a reader of files, rules may name none`() throws {
    let parsed = RuleFileParser.parse(
      RuleSource(
        file: "x.rules",
        text: Array("alert ip any any -> any any (pkt_data; dataset:isset,n,type ip,load a.lst; sid:1;)".utf8),
        dialect: .suricata), variables: [:])
    #expect(parsed.rejected == 1)
  }
}
