internal import Synchronization

/// A field that keeps the value which has it where it is in memory.
///
/// The compiler may hand a struct to a function that does not change it by loading and storing all of it, and it does: of an inspector that
/// was 3.4 KiB for each such call, about half of the time spent on a packet. What has an atomic in it is never loaded whole.
struct InPlace: ~Copyable {
  private let anchor = Atomic<UInt8>(0)
}
