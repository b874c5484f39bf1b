internal import CZlib
import VMFenceCore

/// Decompresses with zlib, at most as much as is asked for, whatever the input says. Its one stream is made at its first use; used by one
/// thread.
@safe
struct Inflater: ~Copyable {
  /// Base-two logarithm of the window, and 16 more for a gzip header (`inflateInit2` of zlib.h).
  enum Format: CInt {
    /// RFC 1950.
    case zlib = 15
    /// RFC 1952.
    case gzip = 31
  }

  // SAFETY: allocated and initialised here, at an address that zlib keeps; ended and freed once, in deinit.
  private var stream: UnsafeMutablePointer<z_stream>?

  // SAFETY: nil points nowhere.
  init() { unsafe stream = nil }

  deinit {
    // SAFETY: see above.
    guard let stream = unsafe stream else { return }
    unsafe inflateEnd(stream)
    unsafe stream.deinitialize(count: 1)
    unsafe stream.deallocate()
  }

  /// Appends what `bytes` hold, `limit` bytes at the most, up to where they are damaged; false when that is nothing.
  mutating func inflate(_ bytes: RawSpan, _ format: Format, limit: Int, to output: inout Scratch) -> Bool {
    guard prepare(format) else { return false }
    // SAFETY: `prepare` made it.
    let stream = unsafe stream
    // SAFETY: zlib reads the input and writes the room, each within its length, during this call only; it changes no input byte.
    unsafe bytes.withUnsafeBytes { input in
      unsafe output.fill(limit) { room in
        guard let stream = unsafe stream, let first = input.baseAddress, let target = room.baseAddress else { return 0 }
        unsafe stream.pointee.next_in = UnsafeMutablePointer(mutating: first.assumingMemoryBound(to: UInt8.self))
        unsafe stream.pointee.avail_in = UInt32(truncatingIfNeeded: input.count)
        unsafe stream.pointee.next_out = target.assumingMemoryBound(to: UInt8.self)
        unsafe stream.pointee.avail_out = UInt32(truncatingIfNeeded: room.count)
        _ = unsafe CZlib.inflate(stream, Z_SYNC_FLUSH)
        return unsafe room.count - Int(stream.pointee.avail_out)
      }
    }
    return output.count > 0
  }

  /// Whether there is a stream that begins anew; false when memory is short.
  private mutating func prepare(_ format: Format) -> Bool {
    // SAFETY: a stream that was initialised.
    if let stream = unsafe stream { return unsafe inflateReset2(stream, format.rawValue) == Z_OK }
    // SAFETY: zeros are what zlib wants of a new stream: its own allocator.
    let new = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
    unsafe new.initialize(to: z_stream())
    guard unsafe vmfence_inflate_init(new, format.rawValue) == Z_OK else {
      unsafe new.deinitialize(count: 1)
      unsafe new.deallocate()
      return false
    }
    unsafe stream = new
    return true
  }
}
