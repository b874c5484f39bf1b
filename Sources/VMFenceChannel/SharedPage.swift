internal import Glibc
import VMFenceCore

/// The page that a guest and Dom0 share. Whatever lies in it is fetched one word at a time, each exactly once, into memory of the
/// reader's own; nothing points into it. Words are little-endian.
public final class SharedPage: Sendable {
  public static let byteCount = 4096

  private let region: SharedRegion

  /// Takes over pages that are mapped from elsewhere, such as those that a guest granted.
  package init(_ region: SharedRegion) {
    precondition(region.byteCount >= Self.byteCount, "less than a page")
    self.region = region
  }

  /// A page of this process, zeroed.
  public static func anonymous() throws(ChannelViolation) -> SharedPage {
    do throws(DetectorError) {
      return SharedPage(try SharedRegion.anonymous(byteCount: byteCount))
    } catch {
      throw ChannelViolation(.page, error.message)
    }
  }

  /// The first page of a memory file (memfd_create(2)), which other processes map too. The descriptor stays the caller's.
  /// Whoever can shorten the file can end this process (SIGBUS): seal it with F_SEAL_SHRINK before another gets it.
  public static func mapping(descriptor: Int32) throws(ChannelViolation) -> SharedPage {
    // SAFETY: a fresh mapping that replaces none.
    let result = unsafe mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    guard let base = unsafe result, unsafe base != MAP_FAILED else {
      throw ChannelViolation(.page, "the page cannot be mapped: \(describeError(errno))")
    }
    let address = UInt(bitPattern: base)
    let region = unsafe SharedRegion(adopting: base, byteCount: byteCount) {
      // SAFETY: the mapping above, unmapped once, when nobody refers to it any more.
      unsafe _ = munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }
    return SharedPage(region)
  }

  /// Fetches a word, and sees what its writer stored before it.
  func acquire(_ offset: Int) -> UInt64 { UInt64(littleEndian: region.word(offset).loadAcquiring()) }
  /// Stores a word: whoever sees it sees what was stored before.
  func release(_ value: UInt64, at offset: Int) { region.word(offset).storeReleasing(value.littleEndian) }
  func load(_ offset: Int) -> UInt64 { UInt64(littleEndian: region.word(offset).loadOnce()) }
  func store(_ value: UInt64, at offset: Int) { region.word(offset).storeOnce(value.littleEndian) }
}
