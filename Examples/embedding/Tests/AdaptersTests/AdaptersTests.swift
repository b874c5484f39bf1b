import Adapters
import Testing
import VMFenceConformance
import VMFenceCore

/// The suites of VMFenceConformance, run on one's own adapters.
@Suite("Our adapters")
struct AdaptersTests {
  @Test("the text capture is a packet source")
  func packetSource() throws {
    let text = "# two frames\n0 00163e00000100163e0000fe0800\n\n1.5 00163e0000fe00163e0000010806ff\n"
    let run = try PacketSourceConformance().check {
      TextCapture(text, start: Timestamp(seconds: 1_800_000_000), port: PortID(1))
    }
    #expect(run.frames.map(\.bytes.count) == [14, 15])
  }

  @Test("what is not a frame is an error with its line", arguments: ["x", "1 0", "1 zz", "-1 00", "1", "nan 00"])
  func badText(line: String) throws {
    let run = try PacketSourceConformance(expectedFailure: .corrupt).check {
      TextCapture("0 00\n\(line)\n", start: .zero, port: PortID(1))
    }
    #expect(run.failure?.place?.line == 2)
  }

  @Test("the word engine is a rule engine")
  func ruleEngine() throws {
    let texts = RuleEngineConformance.Texts(
      matching: "1000001 3 conformance 9999 conformance-attack", other: "1000002 1 other 9999 another-attack",
      bad: "not a rule")
    try RuleEngineConformance(texts: texts, dialect: nil).check(WordEngine(), inspector: WordInspector.self)
  }
}
