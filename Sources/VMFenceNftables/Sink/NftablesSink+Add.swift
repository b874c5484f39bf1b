public import VMFenceCore

/// What one caller wants to have added.
struct AdditionRequest: Sendable {
  var measures: [FirewallMeasure]
  var time: Timestamp
}

typealias AdditionOutcome = Result<UInt64, FirewallError>

extension NftablesSink {
  /// Adds measures whatever generation is in force: for callers who do not keep a whole picture, since what they add does not depend on what stands.
  ///
  /// Calls that come while another one is under way share one transaction (at most 1,024 calls in one): a thousand single blocks at once cost little
  /// more than one change with a thousand. A call that comes alone goes at once. A measure that is refused takes nobody else's with it.
  ///
  /// - Returns: the generation after it.
  /// - Throws: `conflict` when somebody else had removed the table, and all else is lost: read back what is in force.
  @discardableResult
  public func add(_ measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    let outcome = await additions.perform(AdditionRequest(measures: measures, time: time)) { gather in
      contents.withLock { contents in contents.add(gather()) }
    }
    return try outcome.get()
  }
}

extension SinkContents {
  /// Adds what several callers want, together where that can be.
  mutating func add(_ requests: [AdditionRequest]) -> [AdditionOutcome] {
    // Times are the callers' own: what counts is how long a measure is to stand.
    let time = requests[0].time
    let all = requests.flatMap { request in
      request.measures.map { measure in
        var measure = measure
        measure.expires = measure.expires.map { $0 + (time - request.time) }
        return measure
      }
    }
    let together = add(all, at: time)
    guard requests.count > 1, case .failure(let error) = together, error.code != .conflict else {
      return requests.map { _ in together }
    }
    return requests.map { add($0.measures, at: $0.time) }
  }

  private mutating func add(_ measures: [FirewallMeasure], at time: Timestamp) -> AdditionOutcome {
    do throws(FirewallError) {
      return .success(try change(adding: measures, removing: [], at: time))
    } catch {
      return .failure(error)
    }
  }
}
