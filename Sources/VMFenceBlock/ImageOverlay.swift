internal import Synchronization
public import VMFenceCore
public import VMFenceIntegrity

/// A disk as it is after some requests: a base that stays untouched, and what was written since, held in memory.
public final class ImageOverlay: DiskReader {
  /// In bytes; the unit in which writes are held.
  private static let chunkSize = 4096

  private let base: any DiskReader
  private let limit: Int
  private let chunks = Mutex<[UInt64: [UInt8]]>([:])

  /// `memoryLimit`: how many bytes of written data may be held.
  public init(_ base: any DiskReader, memoryLimit: Int = 512 << 20) {
    self.base = base
    limit = max(1, memoryLimit / Self.chunkSize)
  }

  public var byteCount: UInt64 { base.byteCount }

  public func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    try base.read(at: offset, into: &buffer)
    let size = UInt64(Self.chunkSize)
    let end = offset + UInt64(buffer.count)
    chunks.withLock { chunks in
      guard !chunks.isEmpty, offset < end else { return }
      for index in offset / size...(end - 1) / size {
        guard let chunk = chunks[index] else { continue }
        let from = max(offset, index * size)
        let to = min(end, (index + 1) * size)
        buffer.replaceSubrange(
          Int(from - offset)..<Int(to - offset), with: chunk[Int(from - index * size)..<Int(to - index * size)])
      }
    }
  }

  /// Does what a disk does with a request. Discarded ranges read as zeroes. What lies beyond the end is left out.
  ///
  /// - Throws: `tooLarge` when the memory limit is reached, `inputOutput` when the base cannot be read.
  public func apply(_ request: BlockRequest, data: RawSpan) throws(IntegrityError) {
    switch request.operation {
    case .read, .flush: return
    case .write, .discard, .writeZeroes: break
    }
    guard request.length > 0, request.offset < byteCount else { return }
    let available = min(request.length, byteCount - request.offset)
    let length = request.operation == .write ? min(available, UInt64(data.byteCount)) : available
    let size = UInt64(Self.chunkSize)
    var position = request.offset
    let end = request.offset + length
    while position < end {
      let index = position / size
      let stop = min(end, (index + 1) * size)
      let from = Int(position - request.offset)
      let count = Int(stop - position)
      let bytes = request.operation == .write ? data.extracting(from..<from + count).bulkCopy() : nil
      try change(chunk: index, at: Int(position - index * size), count: count, to: bytes)
      position = stop
    }
  }

  /// `bytes`: nil for zeroes.
  private func change(chunk index: UInt64, at start: Int, count: Int, to bytes: [UInt8]?) throws(IntegrityError) {
    let new = bytes ?? [UInt8](repeating: 0, count: count)
    let isKnown = chunks.withLock { $0[index] != nil }
    var fresh: [UInt8] = []
    if !isKnown {
      let offset = index * UInt64(Self.chunkSize)
      fresh = [UInt8](repeating: 0, count: Int(min(UInt64(Self.chunkSize), byteCount - offset)))
      if count < fresh.count { try base.read(at: offset, into: &fresh) }
    }
    let fits = chunks.withLock { chunks in
      if !isKnown {
        guard chunks.count < limit else { return false }
        chunks[index] = fresh
      }
      chunks[index]?.replaceSubrange(start..<start + count, with: new)
      return true
    }
    guard fits else {
      throw IntegrityError(
        .tooLarge, "the recorded writes take more than \(limit * Self.chunkSize) bytes of memory",
        remedy: "raise the memory limit, or replay a shorter recording")
    }
  }
}

extension RawSpan {
  /// A copy as an array, in one piece.
  func bulkCopy() -> [UInt8] {
    // SAFETY: the pointer is used inside the closure only, for the bytes that the span has.
    unsafe withUnsafeBytes { unsafe Array($0) }
  }
}

/// Shows every request to an observer, then does what the disk would do with those that it allowed: the disk of a
/// replay.
public struct OverlaidDisk<Observer: BlockObserver & ~Copyable>: BlockObserver, ~Copyable {
  public var observer: Observer
  public let overlay: ImageOverlay
  /// Why the overlay is no longer what the disk would be; nil as long as it is.
  public private(set) var failure: IntegrityError?
  /// When the last request came.
  public private(set) var lastTime = Timestamp.zero

  public init(_ observer: consuming Observer, overlay: ImageOverlay) {
    self.observer = observer
    self.overlay = overlay
  }

  public mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    lastTime = request.timestamp
    let verdict = observer.observe(request, data: data)
    if verdict == .allow, failure == nil {
      do throws(IntegrityError) {
        try overlay.apply(request, data: data)
      } catch {
        failure = error
        observer.observeGap(at: request.timestamp, reason: error.message)
      }
    }
    return verdict
  }

  public mutating func observeGap(at time: Timestamp, reason: String) {
    observer.observeGap(at: time, reason: reason)
  }
}
