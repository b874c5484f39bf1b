#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

extension EndToEnd {
  @Suite("Rules that drop or reject act on their flow", .serialized)
  struct FlowCutTests {
    /// A server that echoes, and clients that speak and write down what they hear and how it ends.
    private struct Talk {
      let host: ProtectedHost
      static let rules = """
        reject tcp any any -> any 7000 (msg:"rejected"; flow:to_server,established; content:"REJECT-ME"; sid:1000030;)
        drop tcp any any -> any 7000 (msg:"dropped"; flow:to_server,established; content:"DROP-ME"; sid:1000031;)

        """

      init(_ label: String, host more: String = "", policy: String = ProtectedHost.policy) throws {
        host = try ProtectedHost(label, policy: policy, host: more)
        _ = try host.folder.write("guests.rules", ProtectedHost.rules + Self.rules)
        _ = try host.folder.write("echo.sh", "cat 2>>\(host.folder.path("server.errors"))\n")
        let script = """
          use IO::Socket::INET; my ($name) = @ARGV;
          my $s = IO::Socket::INET->new(PeerAddr => '10.77.0.1', PeerPort => 7000, LocalAddr => '10.77.0.99') or die;
          sub finish { open(F, '>', "$name.ends"); print F $_[0]; close F; rename("$name.ends", "$name.end"); exit }
          my $pause = 0.03;
          while (1) {
            if (-e "$name.say") { open(F, '<', "$name.say"); $said = <F>; close F; unlink "$name.say"; $pause = 60 if $said =~ /wait/; syswrite($s, $said) or finish("$!"); }
            else { syswrite($s, "tick") or finish("$!"); }
            my $r = ''; vec($r, fileno($s), 1) = 1;
            while (select(my $ready = $r, undef, undef, $pause) > 0) {
              my $n = sysread($s, my $b, 4096); defined $n or finish("$!"); $n or finish('closed');
              open(F, '>>', "$name.heard"); print F $b; close F;
            }
          }
          """
        _ = try host.folder.write("talk.pl", script)
        _ = try host.network.vm1.start("busybox nc -ll -p 7000 -e /bin/sh \(host.folder.path("echo.sh"))")
        try host.start()
        try eventually("the echo server") { host.network.vm1.succeeds("ss -tln | grep -q :7000") }
      }

      func begin(_ name: String) throws {
        _ = try host.network.outside.start("perl \(host.folder.path("talk.pl")) \(host.folder.path(name))")
        try eventually("\(name) is answered") { heard(name) > 20 }
      }

      /// How many bytes came back.
      func heard(_ name: String) -> Int {
        (try? FileManager.default.attributesOfItem(atPath: host.folder.path("\(name).heard"))[.size] as? Int) ?? 0
      }
      func end(_ name: String) -> String? {
        try? String(contentsOfFile: host.folder.path("\(name).end"), encoding: .utf8)
      }
      func say(_ name: String, _ text: String) throws {
        _ = try host.folder.write("\(name).new", text)
        try FileManager.default.moveItem(
          atPath: host.folder.path("\(name).new"), toPath: host.folder.path("\(name).say"))
      }
      var serverErrors: String {
        (try? String(contentsOfFile: host.folder.path("server.errors"), encoding: .utf8)) ?? ""
      }
      /// The verdict of the alert of a rule, as its event tells it.
      func verdict(_ sid: Int) throws -> [String] {
        let alert = try EVELine.read(host.folder.path("eve.json")).first { $0.alert?.signatureID == sid }
        return alert.map { [$0.vmfence?.ruleVerdict ?? "", $0.vmfence?.verdictFrom ?? ""] } ?? []
      }
    }

    @Test("reject: both ends of the connection are reset, although the server answered meanwhile; others go on")
    func reject() throws {
      let talk = try Talk("reject")
      try talk.begin("bad")
      try talk.begin("good")
      // Only a reset with the number that an end expects is taken, and of a connection that goes on nobody knows it who comes late.
      try talk.say("bad", "REJECT-ME, I wait")
      try eventually("the client is reset") { talk.end("bad") != nil }
      #expect(talk.end("bad") == "Connection reset by peer")
      try eventually("the server is reset") { talk.serverErrors.contains("reset by peer") }
      let heard = talk.heard("good")
      try eventually("another connection of the same source goes on") { talk.heard("good") > heard + 20 }
      #expect(talk.end("good") == nil)
      try eventually("it is told") { try !talk.verdict(1_000_030).isEmpty }
      #expect(try talk.verdict(1_000_030) == ["reject", "next-packet"])
      let status = try talk.host.ask(ControlRequest(.status), DaemonStatus.self)
      #expect(status.flows == ["cut": 1, "reset": 1, "not_cut": 0, "not_reset": 0])
      #expect(talk.host.bans.isEmpty && status.measures == 0)
      try talk.begin("again")
    }

    @Test("drop: the flow stops without a word to its ends; others go on")
    func drop() throws {
      let talk = try Talk("drop")
      try talk.begin("bad")
      try talk.begin("good")
      try talk.say("bad", "DROP-ME")
      try eventually("it is told") { try !talk.verdict(1_000_031).isEmpty }
      #expect(try talk.verdict(1_000_031) == ["drop", "next-packet"])
      try eventually("it is cut") {
        try talk.host.ask(ControlRequest(.status), DaemonStatus.self).flows["cut"] == 1
      }
      // What was under way arrives, and is written down, some time later. A flow that goes on would have as many answers as another one, each time.
      try eventually("the flow stops, and another connection of the same source goes on") {
        let (stopped, since) = (talk.heard("bad"), talk.heard("good"))
        try eventually("a hundred answers") { talk.heard("good") > since + 100 }
        return talk.heard("bad") == stopped
      }
      #expect(talk.end("bad") == nil && talk.serverErrors.isEmpty)
      #expect(try talk.host.cli("status").contains("cut 1"))
      try talk.begin("again")
    }

    @Test("in a dry run nothing is cut, and no event says so")
    func dryRun() throws {
      let talk = try Talk("dry", policy: "dry-run: true\n" + ProtectedHost.policy)
      try talk.begin("bad")
      try talk.say("bad", "REJECT-ME")
      try eventually("it is told") { try !talk.verdict(1_000_030).isEmpty }
      #expect(try talk.verdict(1_000_030) == ["reject", ""])
      let heard = talk.heard("bad")
      try eventually("the flow goes on") { talk.heard("bad") > heard + 100 }
    }
  }
}
#endif
