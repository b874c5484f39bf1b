#if Daemon
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// The integrity monitor of one domain's disk, over an image and a recorded stream of writes.
final class DiskWatch {
  let domain: ScenarioDomain
  private var source: RecordedBlockSource?
  private var disk: OverlaidDisk<DiskMonitor>
  private(set) var requests = 0
  private(set) var denied = 0
  /// Why the recording ended early; nil when it did not.
  private(set) var problem: BlockSourceError?

  struct Failure: Error { var diagnostic: Diagnostic }

  init(_ domain: ScenarioDomain, _ description: ScenarioDisk, start: Timestamp) throws(Failure) {
    self.domain = domain
    let place = description.place
    do throws(IntegrityError) {
      let reader = try FileDiskReader(path: description.image)
      let overlay = ImageOverlay(reader)
      let action: ProtectionPolicy.Action = domain.deniesData ? .denyData : .alert
      let policy = try ProtectionPolicy(domain.protected.map { .init($0, action: action) })
      let monitor = DiskMonitor(
        overlay,
        configuration: .init(
          incarnation: Incarnation(uuid: domain.uuid, domainID: domain.domainID), disk: description.device,
          policy: policy), at: start)
      if let blindness = monitor.blindness { throw blindness }
      disk = OverlaidDisk(monitor, overlay: overlay)
    } catch {
      throw Failure(diagnostic: Self.located(error.diagnostic, description.image, place))
    }
    guard let writes = description.writes else { return }
    do throws(BlockSourceError) {
      source = try RecordedBlockSource.open(path: writes, startingAt: start + description.startsAt)
    } catch {
      throw Failure(diagnostic: Self.located(error.diagnostic, writes, place))
    }
  }

  private static func located(_ diagnostic: Diagnostic, _ path: String, _ place: SourcePlace) -> Diagnostic {
    var result = diagnostic
    if result.place == nil {
      result.place = place
      result.message = "`\(path.escapedForDisplay)`: \(result.message)"
    }
    return result
  }

  var isAtEnd: Bool { source == nil }

  /// Delivers the requests up to `time`.
  func advance(to time: Timestamp) -> [FileEvent] {
    if source != nil {
      do throws(BlockSourceError) {
        // SAFETY of the loop: each round delivers or ends.
        while let outcome = try source?.deliver(limit: 4096, until: time, to: &disk) {
          requests += outcome.requests
          denied += outcome.denied
          if outcome.isAtEnd { source = nil }
          if outcome.isAtEnd || outcome.requests == 0 { break }
        }
      } catch {
        problem = error
        source = nil
      }
    }
    disk.observer.advance(to: time)
    return disk.observer.drainEvents()
  }

  func finish(at time: Timestamp) -> [FileEvent] {
    disk.observer.finish(at: time)
    return disk.observer.drainEvents()
  }
}
#endif
