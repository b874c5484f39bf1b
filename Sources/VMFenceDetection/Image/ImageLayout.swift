import VMFenceCore

// The compiled rule image: one flat block, position-independent (every reference is an index or an offset), little-endian,
// aligned to 64 bytes.
//
//   0   magic            u64    "VMFRULES"
//   8   format version   u32
//   12  section count    u32
//   16  checksum         u64    over everything but these 8 bytes
//   24  byte count       u64
//   32  machine          u64    the matcher's version and the processor features its databases were compiled for
//   40  rule count       u32
//   44  activations      u32    numbers that `activate` rules turn on
//   48  section table           per section: offset u64, record count u32, record stride u32
//   …   sections, each aligned to 64 bytes

/// The sections of an image, in the order in which they lie.
package enum ImageSection: Int, CaseIterable {
  case rules
  case headers
  case addressSets
  case v4Ranges
  case v6Ranges
  case portSets
  case portRanges
  case options
  /// The bytes that contents look for; in lower case where the case does not matter.
  case patterns
  case rates
  /// For whom a rule is not told of.
  case suppressions
  /// The names of the bits and integers of flows, as bytes in `patterns`.
  case flowBits
  case flowIntegers
  /// Lists of flow bits.
  case bitLists
  case metadataIndex
  case metadata
  case classes
  case portPages
  case portGroups
  case groups
  case groupPatterns
  case ruleLists
  /// Regular expressions: place and length in `patterns`, and options.
  case regexes
  /// What is made of buffers before options look at them.
  case transforms
  /// Sets that buffers are looked up in, and the values that their files have.
  case dataSets
  case dataEntries
  /// Vectorscan's databases, as `hs_deserialize_database_at` lays them out, each aligned to 64 bytes.
  case databases

  /// Bytes of a record.
  var stride: Int {
    switch self {
    case .rules: RuleRecord.stride
    case .headers: HeaderRecord.stride
    case .addressSets: 16
    case .v4Ranges: 8
    case .v6Ranges: 32
    case .portSets: 8
    case .portRanges: 4
    case .options: OptionRecord.stride
    case .rates: RateRecord.stride
    case .suppressions: SuppressionRecord.stride
    case .flowBits, .flowIntegers: 8
    case .bitLists: 4
    case .metadataIndex: 8
    case .classes: ClassRecord.stride
    case .portPages, .portGroups: 2
    case .groups: GroupRecord.stride
    case .groupPatterns: GroupPatternRecord.stride
    case .ruleLists: 4
    case .regexes: RegexRecord.stride
    case .transforms: TransformRecord.stride
    case .dataSets: DataSetRecord.stride
    case .dataEntries: DataEntryRecord.stride
    case .patterns, .metadata, .databases: 1
    }
  }
}

package enum ImageLayout {
  /// "VMFRULES" as its bytes stand in memory.
  static let magic: UInt64 = 0x5345_4C55_5246_4D56
  static let version: UInt32 = 7
  package static let checksumOffset = 16
  package static let sectionTable = 48
  package static let sectionEntry = 16
  static let alignment = 64
  /// Offsets inside of sections are 32 bits wide; beyond this size something is wrong with the rules anyway.
  package static let byteLimit = 1 << 30

  static var headerBytes: Int { aligned(sectionTable + ImageSection.allCases.count * sectionEntry) }

  static func aligned(_ offset: Int) -> Int { (offset + alignment - 1) & ~(alignment - 1) }

  /// Finds accidental damage: every change of a single word changes it. It is no proof against a forger, for whom the image's
  /// maker and the sealed memory it travels in are responsible.
  package static func checksum(_ bytes: RawSpan) -> UInt64 {
    var lanes = (
      0x9E37_79B9_7F4A_7C15 as UInt64, 0xC2B2_AE3D_27D4_EB4F as UInt64, 0x1656_67B1_9E37_79F9 as UInt64,
      0x85EB_CA77_C2B2_AE63 as UInt64
    )
    func step(_ lane: UInt64, _ word: UInt64) -> UInt64 {
      let mixed = (lane ^ word) &* 0xD6E8_FEB8_6659_FD93
      return mixed << 31 | mixed >> 33
    }
    lanes.0 = step(lanes.0, bytes.u64le(0))
    lanes.1 = step(lanes.1, bytes.u64le(8))
    var offset = checksumOffset + 8
    while offset + 32 <= bytes.byteCount {
      lanes.0 = step(lanes.0, bytes.u64le(offset))
      lanes.1 = step(lanes.1, bytes.u64le(offset + 8))
      lanes.2 = step(lanes.2, bytes.u64le(offset + 16))
      lanes.3 = step(lanes.3, bytes.u64le(offset + 24))
      offset += 32
    }
    while offset < bytes.byteCount {
      lanes.0 = step(lanes.0, UInt64(bytes.u8(offset)))
      offset += 1
    }
    return step(step(step(step(UInt64(bytes.byteCount), lanes.0), lanes.1), lanes.2), lanes.3)
  }
}

/// "none" in a field that holds an index.
let noIndex = UInt32.max

/// A rule: where its parts lie.
enum RuleRecord {
  static let stride = 56
  static let header = 0
  /// The first of its records in `options`: conditions, then payload tests, then effects.
  static let optionsStart = 4
  /// Of header and state tests.
  static let conditionCount = 8
  static let payloadCount = 10
  static let effectCount = 12
  /// `RuleAction.rawValue`.
  static let action = 14
  static let flags = 15
  static let threshold = 16
  static let filter = 20
  /// The activation that an `activate` rule turns on, or that a `dynamic` rule waits for.
  static let activation = 24
  /// Packets that a `dynamic` rule logs after each activation.
  static let activationCount = 28
  /// gid and sid: what rate counts are kept by, so that they outlive a reload.
  static let gid = 32
  static let sid = 36
  static let moreFlags = 40
  /// 1 is the most severe; at most 255.
  static let priority = 41
  /// In `suppressions`.
  static let suppressionCount = 42
  static let suppressionStart = 44
  /// Its rate, and the action that it gives, in `rates`.
  static let rateFilter = 48
  /// Of the payload tests, those that are not for what `base64_decode` makes.
  static let topPayloadCount = 52
  /// TCP flags that its own tests want set (low byte) and not set (high byte); both 0 for a rule that other protocols can match.
  static let tcpFlags = 54

  /// The verdict (or `pass`) is for the rest of the flow too.
  static let actsOnFlow: UInt8 = 1
  /// No alert is to be told.
  static let isSilent: UInt8 = 2
  /// Compared with packets, also with those whose payload went into a reassembled stream.
  static let wantsPackets: UInt8 = 4
  /// Compared with windows of reassembled streams, and with packets whose payload did not go into one.
  static let wantsStreams: UInt8 = 8
  /// A Suricata rule: in what differs at evaluation, its dialect.
  static let isSuricata: UInt8 = 16
  /// A test names a place counted from the payload's beginning: in a stream, from where the data began that was collected last.
  static let isAnchored: UInt8 = 32
  static let knownFlags: UInt8 = 63

  // In `moreFlags`:
  /// About addresses only: compared with the first packet of each direction of a flow.
  static let isOncePerDirection: UInt8 = 1
  /// Compared with packets whose checksums are wrong, too; those belong to no flow.
  static let seesBadChecksums: UInt8 = 2
  /// Found in a stream, the verdict is for the rest of the flow.
  static let actsOnStream: UInt8 = 4
  /// It is compared with packets that cannot be decoded.
  static let seesMalformed: UInt8 = 8
  /// It overwrites what its contents match.
  static let replaces: UInt8 = 16
  static let knownMoreFlags: UInt8 = 31
}

/// What stands before a rule's parenthesis. Sets are indices, `noIndex` for "any".
enum HeaderRecord {
  static let stride = 20
  static let ipProtocol = 0
  /// 1: either end may be the source.
  static let isBidirectional = 1
  /// 1: a packet without ports does not match, unless any port does.
  static let needsPorts = 2
  static let source = 4
  static let sourcePorts = 8
  static let destination = 12
  static let destinationPorts = 16
}

/// One test, or one effect: a kind, flags of that kind, two small numbers and eleven words. What they hold is said where each
/// family is written (`ImageBuilder+Payload`, `+Header`, `+State`); kinds of a family lie together.
enum OptionRecord {
  static let stride = 48
  static let kind = 0
  static let flags = 1
  static let small1 = 2
  static let small2 = 3
  static let wordCount = 11

  /// Where word `index` (0 ..< `wordCount`) of the record at `record` lies.
  @inline(__always)
  static func word(_ record: Int, _ index: Int) -> Int { record + 4 + index * 4 }

  /// The test is true when what it says is not.
  static let isNegated: UInt8 = 1

  /// Payload tests of one rule at the most.
  static let payloadLimit = 255
}

/// An option's record before it is written.
struct OptionDraft {
  var kind: UInt8
  var flags: UInt8 = 0
  var small1: UInt8 = 0
  var small2: UInt8 = 0
  var words: [UInt32] = []
}

/// A regular expression. It is compiled when it is first needed: compiled code cannot be shared between processes.
enum RegexRecord {
  static let stride = 12
  /// In `patterns`.
  static let offset = 0
  static let length = 4
  static let options = 8
}

enum TransformRecord {
  static let stride = 16
  static let kind = 0
  /// A mode, or whether a second number is given.
  static let small = 1
  static let word0 = 4
  static let word1 = 8
}

enum DataSetRecord {
  static let stride = 32
  /// Texts: offset in `patterns` and length.
  static let name = 0
  static let stateFile = 8
  /// `DataSet.Kind`.
  static let kind = 16
  /// Bytes for what rules add and take out.
  static let memory = 20
  /// In `dataEntries`, by length, then by value.
  static let entriesStart = 24
  static let entriesCount = 28
}

enum DataEntryRecord {
  static let stride = 12
  /// In `patterns`.
  static let value = 0
  static let length = 4
  static let reputation = 8
}

/// `threshold`, `detection_filter` or `rate_filter`.
enum RateRecord {
  static let stride = 20
  static let kind = 0
  static let track = 1
  /// 1: counted as Snort does it; 0: as Suricata does.
  static let isSnort = 2
  static let unique = 3
  static let count = 4
  static let seconds = 8
  static let extra = 12
  /// `RuleAction.rawValue`: what a `rate_filter` turns the rule's into.
  static let action = 16
}

/// `suppress`.
enum SuppressionRecord {
  static let stride = 8
  /// `HostSide.rawValue`, or 0: for all.
  static let side = 0
  /// `noIndex`: any.
  static let addresses = 4
}

/// What packets are grouped by first.
enum PacketClass: Int, CaseIterable {
  /// TCP packets, for rules that want packets.
  case tcp = 0
  case udp = 1
  case icmp = 2
  /// Other protocols, and fragments.
  case other = 3
  /// Windows of TCP streams, and TCP packets that are in none, for rules that want streams: what the client sent, and what belongs to no
  /// flow; then what the server sent. What servers send is most of all traffic, and few rules are about it.
  case tcpToServer = 4
  case tcpToClient = 5

  var hasPorts: Bool { self != .icmp && self != .other }
}

/// The rule groups of a packet class: one for any port, and three tables from a port to a group.
enum ClassRecord {
  static let stride = 16
  /// The group for packets of any port, or `noIndex`.
  static let anyPort = 0
  /// The first of 256 page numbers in `portPages` for destination ports, or `noIndex`.
  static let destinationPages = 4
  /// By the type of the message in class `icmp`.
  static let sourcePages = 8
  /// For destination ports, too: rules for many of them.
  static let widePages = 12
}

/// Rules that are looked for together.
enum GroupRecord {
  static let stride = 32
  /// In `groupPatterns`: those that the database finds, then those that are runs of one byte (`RunSearch`), the longest first.
  static let patternStart = 0
  static let patternCount = 4
  /// In `ruleLists`: rules without a pattern to look for, those last that only a SYN can match (`synCount` of them).
  static let directStart = 8
  static let directCount = 12
  /// In `databases`. Both 0 in a group without patterns for it.
  static let databaseOffset = 16
  static let databaseBytes = 20
  static let runCount = 24
  static let synCount = 28
}

/// A pattern of a group; its number in the group is its id in the database, if it is in that.
enum GroupPatternRecord {
  static let stride = 16
  /// In `ruleLists`: the rules that it is the fast pattern of.
  static let rulesStart = 0
  static let rulesCount = 4
  /// In `patterns`.
  static let patternOffset = 8
  static let patternLength = 12
}

/// No group for a port.
let noGroup = UInt16.max

/// Where the sections of one image lie. Read from a header that was checked.
struct ImageSections: Sendable, BitwiseCopyable {
  struct Extent: Sendable, BitwiseCopyable {
    var offset = 0
    var count = 0
  }

  /// Room for all sections, and some more.
  private var extents: InlineArray<32, Extent> = InlineArray(repeating: Extent())

  // Read and changed in place: a copy of this value costs more than what is looked up with it.
  subscript(section: ImageSection) -> Extent {
    @inline(__always) _read { yield extents[section.rawValue] }
    @inline(__always) _modify { yield &extents[section.rawValue] }
  }
}
