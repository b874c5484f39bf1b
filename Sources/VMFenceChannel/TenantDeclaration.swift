import VMFenceCore

/// What a tenant wants of a guest's protection, as the guest declares it. It is always the whole list.
public struct TenantDeclaration: Hashable, Sendable {
  /// What the guest serves, by the operator's name for it: `web`.
  public var serviceType: String?
  /// Absolute paths to watch, each once.
  public var protectedPaths: [String]

  public init(serviceType: String? = nil, protectedPaths: [String] = []) {
    self.serviceType = serviceType
    self.protectedPaths = protectedPaths
  }

  /// What became of a declaration. A guest may be owned, so what it says only ever adds protection.
  public struct Effect: Hashable, Sendable {
    /// What stands from now on.
    public var standing: TenantDeclaration
    /// Paths that were added.
    public var added: [String]
    /// Paths that stood before and are not declared any more: they stay, and somebody should hear of it.
    public var missing: [String]
    /// Paths for which there is no room.
    public var refused: [String]
    /// The service type that was declared instead of the one that stands, which stays.
    public var refusedServiceType: String?

    /// Whether less protection was declared than stands: an alert.
    public var isShrinking: Bool { !missing.isEmpty || refusedServiceType != nil }
  }

  /// Adds what a guest declared to what stands; takes nothing away, and keeps no more than `ChannelLayout.declarationLimit` paths.
  public func adding(_ declared: TenantDeclaration) -> Effect {
    var effect = Effect(standing: self, added: [], missing: [], refused: [], refusedServiceType: nil)
    let names = Set(declared.protectedPaths)
    effect.missing = protectedPaths.filter { !names.contains($0) }
    var standing = Set(protectedPaths)
    for path in declared.protectedPaths where standing.insert(path).inserted {
      if effect.standing.protectedPaths.count < ChannelLayout.declarationLimit {
        effect.standing.protectedPaths.append(path)
        effect.added.append(path)
      } else {
        effect.refused.append(path)
      }
    }
    if serviceType == nil {
      effect.standing.serviceType = declared.serviceType
    } else if let other = declared.serviceType, other != serviceType {
      effect.refusedServiceType = other
    }
    return effect
  }

  /// As many as the channel takes, checked as Dom0 checks them.
  ///
  /// - Throws: `message` with what is wrong.
  public func validate() throws(ChannelViolation) {
    guard items.count <= ChannelLayout.declarationLimit else {
      throw ChannelViolation(
        .message, "\(items.count) items, and \(ChannelLayout.declarationLimit) are the most")
    }
    for item in items { try item.validate() }
    guard Set(protectedPaths).count == protectedPaths.count else {
      throw ChannelViolation(.message, "a path that is declared twice")
    }
  }

  /// What of it can be declared, for one that was kept by a version that took more.
  public var validated: TenantDeclaration {
    var result = TenantDeclaration()
    for item in items where (try? item.validate()) != nil {
      switch item.kind {
      case .nothing: break
      case .service: result.serviceType = item.text
      case .path: result = result.adding(TenantDeclaration(protectedPaths: [item.text])).standing
      }
    }
    return result
  }

  var items: [DeclarationItem] {
    (serviceType.map { [DeclarationItem(kind: .service, text: $0)] } ?? [])
      + protectedPaths.map { DeclarationItem(kind: .path, text: $0) }
  }
}

/// What the operator takes no more of what a guest declares, until it is allowed again: a guest that is owned declares what was taken back once more.
public struct DeclarationRefusal: Hashable, Sendable {
  /// Nothing is taken, whatever it is.
  public var isWhole: Bool
  /// These are not.
  public var paths: Set<String>

  public init(isWhole: Bool = false, paths: Set<String> = []) {
    self.isWhole = isWhole
    self.paths = paths
  }

  public var isNothing: Bool { !isWhole && paths.isEmpty }

  /// What is left of it.
  public func applied(to declaration: TenantDeclaration) -> TenantDeclaration {
    guard !isWhole else { return TenantDeclaration() }
    return TenantDeclaration(
      serviceType: declaration.serviceType, protectedPaths: declaration.protectedPaths.filter { !paths.contains($0) })
  }
}

/// One thing that is declared.
struct DeclarationItem: Equatable {
  enum Kind: UInt8 {
    /// Nothing: what an empty declaration has.
    case nothing = 0
    case service = 1
    case path = 2
  }

  var kind: Kind
  var text: String

  func validate() throws(ChannelViolation) {
    let bytes = Array(text.utf8)
    guard bytes.count <= ChannelLayout.textLimit, ChannelText.parse(bytes) != nil else {
      throw ChannelViolation(.message, "'\(text.escapedForDisplay)' is too long or no plain text")
    }
    switch kind {
    case .nothing:
      guard bytes.isEmpty else { throw ChannelViolation(.message, "a text that is nothing") }
    case .service:
      let isName = bytes.allSatisfy { byte in
        (0x61...0x7A).contains(byte) || (0x30...0x39).contains(byte) || byte == UInt8(ascii: "-")
      }
      guard isName, (1...32).contains(bytes.count) else {
        throw ChannelViolation(
          .message, "'\(text.escapedForDisplay)' is no service type: lower-case letters, digits, '-'")
      }
    case .path: try Self.validate(path: text)
    }
  }

  /// What a disk's monitor takes as a pattern, compared as bytes as there: one that it refused would never be watched.
  private static func validate(path: String) throws(ChannelViolation) {
    let shown = "'\(path.escapedForDisplay)'"
    let components = path.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map(Array.init)
    guard components.first == [] else { throw ChannelViolation(.message, "\(shown) is no absolute path") }
    guard !components.contains(where: { $0 == Array("..".utf8) || $0 == Array(".".utf8) }) else {
      throw ChannelViolation(.message, "\(shown) has . or .. as a component")
    }
    guard path.utf8.count == 1 || !components.dropFirst().contains([]) else {
      throw ChannelViolation(
        .message, "\(shown) has an empty component: /etc is a directory itself, /etc/** what is in it")
    }
  }
}

/// A message with one item of a declaration.
struct DeclarationPart: Equatable {
  private static let fixedBytes = 12

  var generation: UInt32
  var index: Int
  var count: Int
  var item: DeclarationItem

  var encoded: [UInt8] {
    var result: [UInt8] = []
    result.append(little: generation)
    result.append(little: UInt16(index))
    result.append(little: UInt16(count))
    result += [item.kind.rawValue, 0]
    result.append(little: UInt16(item.text.utf8.count))
    return result + Array(item.text.utf8)
  }

  init(generation: UInt32, index: Int, count: Int, item: DeclarationItem) {
    (self.generation, self.index, self.count, self.item) = (generation, index, count, item)
  }

  init(_ payload: [UInt8]) throws(ChannelViolation) {
    guard payload.count >= Self.fixedBytes else { throw ChannelViolation(.message, "a declaration breaks off") }
    let (generation, index, count, length) = payload.withRawSpan {
      ($0.u32le(0), Int($0.u16le(4)), Int($0.u16le(6)), Int($0.u16le(10)))
    }
    guard (1...ChannelLayout.declarationLimit).contains(count), index < count else {
      throw ChannelViolation(.message, "item \(index) of \(count) of a declaration")
    }
    guard length <= ChannelLayout.textLimit, payload.count == Self.fixedBytes + length, payload[9] == 0,
      let kind = DeclarationItem.Kind(rawValue: payload[8]),
      let text = ChannelText.parse(payload[Self.fixedBytes...])
    else { throw ChannelViolation(.message, "an item of a declaration is no text of its length") }
    self.init(generation: generation, index: index, count: count, item: DeclarationItem(kind: kind, text: text))
    try item.validate()
    guard kind != .nothing || count == 1 else { throw ChannelViolation(.message, "an empty item among others") }
  }
}

/// Puts the parts of a declaration together. They come in order, one declaration after the other.
struct DeclarationAssembly {
  private var generation: UInt32 = 0
  private var count = 0
  private var items: [DeclarationItem] = []

  /// The declaration, when this part was its last.
  mutating func add(_ part: DeclarationPart) throws(ChannelViolation) -> TenantDeclaration? {
    if items.isEmpty {
      guard part.generation > generation else { throw ChannelViolation(.order, "a declaration that came already") }
      (generation, count) = (part.generation, part.count)
    }
    guard part.generation == generation, part.count == count, part.index == items.count else {
      throw ChannelViolation(.order, "item \(part.index) of a declaration after \(items.count) items")
    }
    items.append(part.item)
    guard items.count == count else { return nil }
    let whole = items
    items = []
    let services = whole.filter { $0.kind == .service }.map(\.text)
    let declaration = TenantDeclaration(
      serviceType: services.first, protectedPaths: whole.filter { $0.kind == .path }.map(\.text))
    guard services.count <= 1 else { throw ChannelViolation(.message, "two service types") }
    try declaration.validate()
    return declaration
  }
}
