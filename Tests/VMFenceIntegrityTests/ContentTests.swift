import Testing
import VMFenceCore
import VMFenceDetection
import VMFenceIntegrity

/// What is written to protected files, before a real rule engine.
@Suite struct ContentTests {
  static let rules = """
    alert tcp any 80 -> any any (msg:"shell"; flow:established,to_client; content:"/bin/sh -i"; sid:1; rev:2; priority:1;)
    alert tcp any any -> any any (msg:"absent"; content:"not in there"; sid:2;)
    alert tcp any any -> any 80 (msg:"path"; flow:established,to_server; content:"GET /etc/passwd HTTP/1.1"; sid:3;)
    """
  static let watched = [ProtectionPolicy.Rule("/etc/**", attributes: [.standard, .content])]

  private func inspection(_ text: String = rules) throws -> ContentInspection<SnortInspector> {
    let compiled = try SnortRuleEngine().compile(
      RuleCompilationRequest(
        sources: [RuleSource(file: "files.rules", text: Array(text.utf8), dialect: .suricata)], onBadRule: .fail))
    return try ContentInspection(rules: compiled.rules)
  }

  private func contents(_ bytes: [UInt8], path: String = "/etc/motd") -> FileContents {
    FileContents(
      time: Timestamp(seconds: 5), incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)),
      disk: "xvda", sequence: 4, path: Array(path.utf8), inode: 9, offset: 0, bytes: bytes, isCut: false)
  }

  @Test func aRuleFindsWhatWasWrittenToAProtectedFile() throws {
    var inspection = try inspection()
    var guest = try Guest(protecting: Self.watched)
    guest.image.putText(20, "x:0:0:/bin/sh -i")
    guest.image.putText(23, "/bin/sh -i is nobody's business here")
    guest.write(20, 23)
    _ = guest.flush()
    let next = guest.disk.observer.nextContents()
    let written = try #require(next)
    #expect(written.path == Array("/etc/passwd".utf8) && written.bytes.starts(with: Array("x:0:0:/bin/sh -i".utf8)))
    #expect(guest.disk.observer.nextContents() == nil)
    let found = inspection.inspect(written)
    #expect(found.map(\.sid) == [3, 1])
    let event = written.event(matching: found[1])
    #expect(event.operation == .match && event.severity == 1 && event.sequence == 0)
    #expect(event.changes == [.init(attribute: "rule", old: "", new: "1:1:2 shell")])
  }

  @Test func aPatternAcrossTheBorderOfWhatIsNewIsFound() throws {
    var inspection = try inspection()
    var guest = try Guest(protecting: Self.watched)
    guest.image.bytes.replaceSubrange(20 * 1024 + 95..<20 * 1024 + 100, with: Array("/bin/".utf8))
    guest.write(20)
    _ = guest.flush()
    while let written = guest.disk.observer.nextContents() {
      #expect(!inspection.inspect(written).map(\.sid).contains(1))
    }
    guest.image.bytes.replaceSubrange(20 * 1024 + 100..<20 * 1024 + 105, with: Array("sh -i".utf8))
    guest.image.putInode(13, .init(size: 105, blocks: [20]))
    guest.write(20, inodeBlock(13))
    #expect(guest.flush().contains { $0.contains("append") })
    let next = guest.disk.observer.nextContents()
    #expect(inspection.inspect(try #require(next)).map(\.sid).contains(1))
  }

  @Test func filesOfAnySizeAreInspectedWhole() throws {
    var inspection = try inspection()
    for size in [0, 1, 9, 32_767, 32_768, 32_773, 200_000] {
      var bytes = [UInt8](repeating: 0x2E, count: size)
      #expect(inspection.inspect(contents(bytes)).isEmpty, "\(size)")
      for place in [0, 32_764, size - 10] where place >= 0 && place + 10 <= size {
        bytes.replaceSubrange(place..<place + 10, with: Array("/bin/sh -i".utf8))
        #expect(inspection.inspect(contents(bytes)).map(\.sid) == [1], "\(size) at \(place)")
        bytes.replaceSubrange(place..<place + 10, with: repeatElement(0x2E, count: 10))
      }
    }
    #expect(inspection.lostMatches == 0)
  }

  @Test func namesOfAGuestDoNotBreakTheTransfer() throws {
    var inspection = try inspection()
    for path in ["/etc/pass wd HTTP/1.1\r\nX: /bin/sh -i", "/\u{1B}[2J", String(repeating: "a", count: 5000)] {
      #expect(inspection.inspect(contents([1, 2, 3], path: path)).isEmpty, "\(path.prefix(20).debugDescription)")
    }
  }

  @Test func whatIsHandedOverIsBounded() throws {
    var guest = try Guest(protecting: Self.watched, contentLimit: 300)
    guest.image.putText(21, String(repeating: "n", count: 1000))
    guest.write(21)
    _ = guest.flush()
    let next = guest.disk.observer.nextContents()
    let written = try #require(next)
    #expect(written.bytes.count == 300 && written.isCut)
    // Only where the policy asks for it.
    var other = try Guest(protecting: [.init("/etc/**")])
    other.image.putText(21, "n")
    other.write(21)
    _ = other.flush()
    #expect(other.disk.observer.nextContents() == nil)
  }
}
