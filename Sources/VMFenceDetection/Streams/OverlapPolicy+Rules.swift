extension OverlapPolicy {
  /// Fragments: whether bytes of a fragment that came later replace those of an earlier one, for what both cover. Offsets in the
  /// datagram.
  ///
  /// Source: J. Novak, "Target-Based Fragmentation Reassembly" (2005), whose example the tests replay; Windows and Solaris as later
  /// measured: the earlier one stays unless it is covered whole from before its beginning. (Present Linux lets it not come to that:
  /// `FragmentStore.add`.)
  func fragmentReplaces(_ new: Range<Int>, _ old: Range<Int>) -> Bool {
    switch self {
    case .first, .vista: false
    case .last: true
    case .bsd: new.lowerBound < old.lowerBound
    case .linux, .oldLinux: new.lowerBound <= old.lowerBound
    case .bsdRight: new.lowerBound >= old.lowerBound
    case .windows: new.lowerBound < old.lowerBound && new.upperBound > old.upperBound
    case .solaris: new.lowerBound < old.lowerBound && new.upperBound >= old.upperBound
    }
  }

  /// Systems from before RFC 5961, which take a reset anywhere in their window, and acknowledgements however old.
  var takesResetsInWindow: Bool { self == .oldLinux || self == .solaris }

  /// TCP segments: the same. `startsBefore` and so on compare sequence numbers: -1, 0 or 1 as the new segment's start (end) is less
  /// than, equal to or greater than the old one's.
  ///
  /// Source: J. Novak and S. Sturges, "Target-Based TCP Stream Reassembly" (2007).
  func segmentReplaces(start: Int, end: Int) -> Bool {
    switch self {
    case .first, .vista, .bsdRight: false
    case .last: true
    case .bsd, .windows: start < 0
    case .linux: start < 0 || start == 0 && end > 0
    case .oldLinux: start < 0 || start == 0 && end >= 0
    case .solaris: end > 0 || end == 0 && start <= 0
    }
  }
}
