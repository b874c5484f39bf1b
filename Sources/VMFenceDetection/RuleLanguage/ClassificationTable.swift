import VMFenceCore

/// The classes that rules name, with the priority that each gives. The names and priorities are those that every
/// `classification.config` in use has; a file given with the rules changes and adds to them.
struct ClassificationTable {
  private var classes: [String: (text: String, priority: Int)] = [
    "not-suspicious": ("Ordinary traffic", 3), "unknown": ("Traffic of an unknown kind", 3),
    "bad-unknown": ("Traffic that is likely bad", 2), "attempted-recon": ("Attempt to gather information", 2),
    "successful-recon-limited": ("Some information was gathered", 2),
    "successful-recon-largescale": ("Much information was gathered", 2),
    "attempted-dos": ("Attempted denial of service", 2), "successful-dos": ("Denial of service", 2),
    "attempted-user": ("Attempt to gain a user's rights", 1),
    "unsuccessful-user": ("Failed attempt to gain a user's rights", 1),
    "successful-user": ("A user's rights were gained", 1),
    "attempted-admin": ("Attempt to gain the administrator's rights", 1),
    "successful-admin": ("The administrator's rights were gained", 1),
    "rpc-portmap-decode": ("RPC query was decoded", 2),
    "shellcode-detect": ("Executable code was seen", 1), "string-detect": ("A suspicious text was seen", 3),
    "suspicious-filename-detect": ("A suspicious file name was seen", 2),
    "suspicious-login": ("Login under a suspicious name", 2), "system-call-detect": ("A system call was seen", 2),
    "tcp-connection": ("A TCP connection was seen", 4), "trojan-activity": ("A trojan at work", 1),
    "unusual-client-port-connection": ("A client uses an unusual port", 2),
    "network-scan": ("Network scan", 3), "denial-of-service": ("Denial of service was seen", 2),
    "non-standard-protocol": ("An unusual protocol or event", 2),
    "protocol-command-decode": ("A protocol's command was decoded", 3),
    "web-application-activity": ("Access to a web application that may be vulnerable", 2),
    "web-application-attack": ("Attack on a web application", 1), "misc-activity": ("Other activity", 3),
    "misc-attack": ("Other attack", 2), "icmp-event": ("ICMP event", 3),
    "inappropriate-content": ("Inappropriate content", 1),
    "policy-violation": ("Possible breach of a privacy policy", 1),
    "default-login-attempt": ("Login with default name and password", 2),
    "sdf": ("Sensitive data", 2), "file-format": ("File of a known kind was seen", 1),
    "malware-cnc": ("Malware speaks to its control server", 1),
    "client-side-exploit": ("Attempt to exploit a client", 1),
    "targeted-activity": ("Targeted malicious activity", 1), "exploit-kit": ("Exploit kit at work", 1),
    "external-ip-check": ("A device asks for its outside address", 2),
    "domain-c2": ("Control server's domain was asked for", 1), "pup-activity": ("Possibly unwanted program", 2),
    "credential-theft": ("Credentials were stolen", 1), "social-engineering": ("Social engineering was tried", 2),
    "coin-mining": ("Coin mining", 2), "command-and-control": ("Malware speaks to its control server", 1),
  ]

  var names: Set<String> { Set(classes.keys) }

  func find(_ name: String) -> (text: String, priority: Int)? { classes[name] }

  /// `SHORTNAME,DESCRIPTION,PRIORITY`, what follows `config classification:`.
  mutating func define(_ text: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = text.split(at: UInt8(ascii: ","))
    guard parts.count == 3, !parts[0].isEmpty, let priority = Int(parts[2].text), (1...255).contains(priority) else {
      throw RuleProblem(
        text.startIndex, "\(text.shown) is not a classification",
        "write `config classification: SHORTNAME,DESCRIPTION,PRIORITY` with a priority from 1 to 255",
        rejectsRule: false)
    }
    classes[parts[0].text] = (parts[1].text, priority)
  }
}
