internal import CLinux
internal import Glibc
package import VMFenceCore

/// A detector that is a process. Its signals go through a pidfd, so they never reach a stranger that was given its number.
package final class ProcessDetector<Rules: CompiledRules>: DetectorHandle, @unchecked Sendable {
  // Used by the supervisor's thread only, as the handle's contract says.
  private enum State {
    case running
    case suspended
    case ended(DetectorStatus)
  }

  package let processID: Int32
  private let channel: DetectorChannel
  private let pidfd: OwnedDescriptor
  private let images: ImageCache
  private var image: ImageFile
  private var state = State.running
  private var isDetached = false

  init(
    channel: DetectorChannel, processID: Int32, pidfd: consuming OwnedDescriptor, image: ImageFile, images: ImageCache
  ) {
    self.channel = channel
    self.processID = processID
    self.pidfd = pidfd
    self.image = image
    self.images = images
  }

  deinit { kill() }

  /// SIGSTOP; returns when the process has stopped.
  package func suspend() throws(DetectorError) {
    update()
    guard case .running = state else { return try checkAlive() }
    try signal(SIGSTOP)
    look(blocks: true, stops: true)
    try checkAlive()
  }

  /// SIGCONT.
  package func resume() throws(DetectorError) {
    update()
    try checkAlive()
    try signal(SIGCONT)
    state = .running
  }

  package func replaceRules(with rules: Rules) throws(DetectorError) -> UInt32 {
    update()
    try checkAlive()
    let file = try images.file(for: rules.image)
    let message = RulesMessage.encode(generation: channel.generation + 1)
    let sent = channel.withSocket { socket in
      // SAFETY: eight bytes are read; the kernel duplicates the descriptor.
      unsafe withUnsafeBytes(of: message) { bytes in
        unsafe vmfence_send_descriptor(socket.descriptor, bytes.baseAddress, bytes.count, file.descriptor.rawValue)
      }
    }
    guard sent == 8 else {
      throw DetectorError(
        .failed, "cannot hand rules to detector process \(processID): \(ErrorText.last())",
        remedy: "if it is suspended with many rule sets waiting, resume it first")
    }
    image = file
    return channel.advanceGeneration(ruleCount: rules.ruleCount)
  }

  /// SIGKILL, unless it has ended already; returns when it is gone and reaped.
  package func kill() {
    update()
    if case .ended = state {
    } else {
      _ = vmfence_pidfd_send_signal(pidfd.rawValue, SIGKILL)
      look(blocks: true, stops: false)
      state = .ended(.killed)
    }
    guard !isDetached else { return }
    isDetached = true
    channel.detach()
  }

  package var status: DetectorStatus {
    update()
    switch state {
    case .running: return .running
    case .suspended: return .suspended
    case .ended(let status): return status
    }
  }

  /// Takes notice of an end, without waiting.
  private func update() {
    if case .ended = state { return }
    look(blocks: false, stops: false)
  }

  private func look(blocks: Bool, stops: Bool) {
    var code: Int32 = 0
    // SAFETY: `code` is written.
    switch unsafe UInt32(bitPattern: vmfence_pidfd_wait(pidfd.rawValue, blocks ? 1 : 0, stops ? 1 : 0, &code)) {
    case VMFENCE_WAIT_EXITED.rawValue: state = .ended(.exited(code: code))
    case VMFENCE_WAIT_KILLED.rawValue: state = .ended(.crashed(signal: code))
    case VMFENCE_WAIT_STOPPED.rawValue: state = .suspended
    case VMFENCE_WAIT_NOTHING.rawValue: break
    // Somebody else has waited for our child; how it ended is lost.
    default: state = .ended(.exited(code: -1))
    }
  }

  private func signal(_ number: Int32) throws(DetectorError) {
    guard vmfence_pidfd_send_signal(pidfd.rawValue, number) == 0 else {
      throw DetectorError(
        .failed, "cannot signal detector process \(processID): \(ErrorText.last())", remedy: "kill and launch it again")
    }
  }

  private func checkAlive() throws(DetectorError) {
    if case .ended(let status) = state {
      throw DetectorError(
        .gone, "detector process \(processID) has ended: \(status)", remedy: "launch another on the same channel")
    }
  }
}
