import VMFenceCapture
import VMFenceCore

// A capture file, pcap or pcapng, read to its end or to the first error. What is checked besides "no trap": frames are
// bounded, no more bytes come out than went in, and the counters agree.

func fuzzCapture(_ input: RawSpan) {
  do throws(PacketSourceError) {
    var file = try CaptureFile.open(bytes: input.copiedBytes())
    var frames: UInt64 = 0
    var bytes = 0
    // A record has 12 bytes at the least: the limit is there to find a reader that does not go forward.
    while frames <= UInt64(input.byteCount) {
      let outcome = try file.nextBatch(limit: 64) { frame, span in
        frames += 1
        bytes += span.byteCount
        precondition(span.byteCount <= CaptureFile.maximumFrameLength, "a frame beyond the bound")
        precondition(Int(frame.originalLength) >= span.byteCount, "a frame longer than it was")
      }
      if outcome.isAtEnd { break }
    }
    precondition(frames <= UInt64(input.byteCount) && bytes <= input.byteCount, "more came out than went in")
    precondition(file.counters.received == frames, "a frame was not counted")
  } catch {
    precondition(!error.message.isEmpty, "an error that says nothing")
  }
}
