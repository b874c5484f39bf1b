/// How the tests of one buffer hang on each other: which earlier test can still help when one fails, so that only that is tried at
/// its next place.
struct ChainPlan {
  /// For each test the level to go back to, or `PayloadFlags.noLevel`.
  private(set) var retryLevels: [UInt8] = []
  /// For each test whether it begins anew when an earlier one moved on.
  private(set) var restarts: [Bool] = []

  init(_ checks: [PayloadCheck]) {
    let usesVariables = checks.contains(where: \.usesVariables)
    /// The nearest test before that moves the cursor, and the nearest that can be tried again.
    var mover: Int?
    var retryable: Int?
    for (index, check) in checks.enumerated() {
      if usesVariables {
        // What a variable is hangs on all that came before.
        retryLevels.append(retryable.map { UInt8($0) } ?? PayloadFlags.noLevel)
        restarts.append(true)
      } else {
        var level: Int?
        if check.isRelative, let mover {
          level =
            checks[mover].isRetryable
            ? mover : retryLevels[mover] == PayloadFlags.noLevel ? nil : Int(retryLevels[mover])
        }
        retryLevels.append(level.map { UInt8($0) } ?? PayloadFlags.noLevel)
        restarts.append(!(check.isContent && (mover.map { checks[$0].isContent } ?? true)))
      }
      if check.movesCursor { mover = index }
      if check.isRetryable { retryable = index }
    }
  }
}

extension PayloadCheck {
  fileprivate var isContent: Bool { if case .content = self { true } else { false } }

  var isNegated: Bool {
    switch self {
    case .content(let test): test.isNegated
    case .regex(let test): test.isNegated
    case .byteTest(let test): test.isNegated
    case .dataAt(let test): test.isNegated
    case .length(let test): test.number.isNegated
    case .entropy(let test): test.isNegated
    case .digest(let test): test.isNegated
    case .byteJump, .byteExtract, .byteMath, .base64, .rpc, .asn1, .ber, .cvsEntry, .sensitiveData, .absent: false
    case .dataSet(let test): test.isNegated
    }
  }

  var isRelative: Bool {
    switch self {
    case .content(let test): test.isRelative
    case .regex(let test): test.isRelative
    case .byteTest(let test): test.reading.isRelative
    case .byteJump(let test): test.reading.isRelative
    case .byteExtract(let test): test.reading.isRelative
    case .byteMath(let test): test.reading.isRelative
    case .dataAt(let test): test.isRelative
    case .length(let test): test.isRelative
    case .base64(let test): test.isRelative
    case .digest(let test): test.isRelative
    case .asn1(let test): test.isRelative
    case .ber, .cvsEntry: true
    case .entropy, .rpc, .sensitiveData, .absent, .dataSet: false
    }
  }

  /// Whether what follows is counted from its end.
  fileprivate var movesCursor: Bool {
    switch self {
    case .content, .regex, .digest: !isNegated
    case .byteJump, .byteExtract, .byteMath, .ber: true
    case .byteTest, .dataAt, .length, .base64, .entropy, .rpc, .asn1, .cvsEntry, .sensitiveData, .absent,
      .dataSet:
      false
    }
  }

  /// Whether it may match at several places.
  fileprivate var isRetryable: Bool {
    switch self {
    case .content, .regex: !isNegated
    default: false
    }
  }

  fileprivate var usesVariables: Bool {
    func isVariable(_ number: RuleNumber?) -> Bool { if case .variable? = number { true } else { false } }
    return switch self {
    case .content(let test): [test.offset, test.depth, test.distance, test.within].contains(where: isVariable)
    case .byteTest(let test): [test.reading.count, test.reading.offset, test.value].contains(where: isVariable)
    case .byteJump(let test): [test.reading.count, test.reading.offset, test.postOffset].contains(where: isVariable)
    case .byteMath(let test): [test.reading.count, test.reading.offset, test.value].contains(where: isVariable)
    case .dataAt(let test): isVariable(test.position)
    case .digest(let test): isVariable(test.offset)
    default: false
    }
  }
}
