public import VMFenceCore

// What of the events the policy wants to be told, and what it wants to be added.
extension IntegrityMonitor {
  /// A time in which changes of some paths are expected.
  struct Window: Sendable {
    var policy: ProtectionPolicy
    var from: Timestamp
    var until: Timestamp
  }

  public static var windowLimit: Int { 64 }

  /// Announces changes: what happens to matching paths in this time is told with `isAnnounced`, and no policy acts on it.
  /// Refusals stay in force.
  ///
  /// - Throws: `badPattern`; `tooLarge` with more than `windowLimit` windows that have not ended.
  public mutating func expect(_ patterns: [String], from: Timestamp, until: Timestamp) throws(IntegrityError) {
    windows = try Self.windows(windows, adding: patterns, from: from, until: until)
  }

  static func windows(
    _ windows: [Window], adding patterns: [String], from: Timestamp, until: Timestamp
  ) throws(IntegrityError) -> [Window] {
    let open = windows.filter { $0.until >= from }
    guard open.count < windowLimit else {
      throw IntegrityError(
        .tooLarge, "\(open.count) announced windows are open", remedy: "announce fewer patterns in more general form")
    }
    return open + [Window(policy: try ProtectionPolicy(patterns.map { .init($0) }), from: from, until: until)]
  }

  /// An event as the policy wants it told; nil when it is of no interest.
  func judged(_ event: FileEvent) -> FileEvent? {
    let protection =
      configuration.policy.protection(forPath: event.path)
      ?? event.oldPath.flatMap { configuration.policy.protection(forPath: $0) }
    var event = event
    event.severity = protection?.severity ?? event.severity
    event.isAnnounced = windows.contains { window in
      window.from <= event.time && event.time < window.until
        && ([event.path] + (event.oldPath.map { [$0] } ?? [])).contains { window.policy.action(forPath: $0) != nil }
    }
    guard let protection, event.verdict == .allow else { return event }
    return Self.isOfInterest(&event, protection.attributes) ? event : nil
  }

  private static func isOfInterest(_ event: inout FileEvent, _ attributes: FileAttributes) -> Bool {
    switch event.operation {
    case .create, .replace, .rename, .unlink, .rmdir, .match, .damage, .gap: return true
    case .read: return attributes.contains(.reads)
    case .link: return event.changes.isEmpty || attributes.contains(.links)
    case .chmod: return attributes.contains(.permissions)
    case .times: return attributes.contains(.modificationTime)
    case .append: return !attributes.isDisjoint(with: [.size, .sha256, .modificationTime])
    case .truncate: return !attributes.isDisjoint(with: [.size, .growingSize, .sha256, .modificationTime])
    case .write:
      if event.changes.contains(where: { $0.attribute == "target" }) { return attributes.contains(.target) }
      return !attributes.isDisjoint(with: [.size, .growingSize, .sha256, .modificationTime])
    case .chown:
      event.changes.removeAll {
        $0.attribute != namesNote && !attributes.contains($0.attribute == "uid" ? .user : .group)
      }
      return event.changes.contains { $0.attribute != namesNote }
    case .xattr:
      event.changes.removeAll {
        $0.attribute != namesNote
          && !attributes.contains($0.attribute.contains(" system.posix_acl_") ? .accessControl : .extendedAttributes)
      }
      return event.changes.contains { $0.attribute != namesNote }
    }
  }

  // MARK: Names

  /// A name under which changes of a file are told, with a note when it stands for others, too.
  struct ToldName {
    var path: [UInt8]
    /// Empty, or one.
    var notes: [FileEvent.AttributeChange]
  }

  private static let namesNote = "names"
  /// Of names of which the same is said, so many are told.
  static let toldNames = 16

  /// What decides how an event is told: names that have it in common need one event.
  private struct NameClass: Hashable {
    var protection: ProtectionPolicy.Protection?
    /// The announced windows that it falls into: a bit each.
    var windows: UInt64
  }

  /// The names under which changes of a file are told: of those of which policy and announced windows say the same, the oldest ones. A guest can give a
  /// file as many names as it likes, and each event would be told as often.
  ///
  /// - `former`: the view that was lost, while there is none.
  func toldNames(
    of node: FileSystemView.Node, except: Set<[UInt8]> = [], in former: FileSystemView? = nil
  ) -> [ToldName] {
    let view = former ?? view
    let paths = node.links.map { view?.path(of: $0) ?? [] }.filter { !except.contains($0) }
    guard paths.count > 1 else { return paths.map { ToldName(path: $0, notes: []) } }
    var places: [NameClass: Int] = [:]
    var classes: [(paths: [[UInt8]], count: Int)] = []
    for path in paths {
      let kind = nameClass(of: path)
      let place = places[kind, default: classes.count]
      if place == classes.count {
        places[kind] = place
        classes.append(([], 0))
      }
      classes[place].count += 1
      if classes[place].paths.count < Self.toldNames { classes[place].paths.append(path) }
    }
    return classes.flatMap { group in
      let note = FileEvent.AttributeChange(
        attribute: Self.namesNote, old: "", new: "\(group.count), of which \(group.paths.count) are told")
      return group.paths.enumerated().map { index, path in
        ToldName(path: path, notes: index == 0 && group.count > group.paths.count ? [note] : [])
      }
    }
  }

  /// Notes what a name stands for in what was told under it since the batch had `first` events.
  mutating func add(_ notes: [FileEvent.AttributeChange], from first: Int) {
    for index in first..<batch.count { batch[index].changes += notes }
  }

  private func nameClass(of path: [UInt8]) -> NameClass {
    var open: UInt64 = 0
    for (bit, window) in windows.prefix(Self.windowLimit).enumerated() where window.policy.action(forPath: path) != nil
    {
      open |= 1 << UInt64(bit)
    }
    return NameClass(protection: configuration.policy.protection(forPath: path), windows: open)
  }

  // MARK: Reads

  mutating func tellReads(_ request: BlockRequest, _ moment: Moment) {
    let (end, overflow) = request.offset.addingReportingOverflow(request.length)
    guard view != nil, request.length > 0, !overflow, end <= reader.byteCount else { return }
    findHits(from: request.offset, to: end)
    guard let size = view.map({ UInt64($0.fileSystem.blockSize) }) else { return }
    var ranges: [UInt32: Range<UInt64>] = [:]
    for (block, use) in hits where use.role == .data {
      let start = UInt64(use.index) * size
      let first = max(request.offset, block * size) - block * size
      let last = min(end, (block + 1) * size) - block * size
      let old = ranges[use.inode] ?? start + first..<start + last
      ranges[use.inode] = min(old.lowerBound, start + first)..<max(old.upperBound, start + last)
    }
    for (number, range) in ranges.sorted(by: { $0.key < $1.key }) {
      guard let node = view?.nodes[number] else { continue }
      let inside = range.clamped(to: 0..<node.inode.size)
      for name in inside.isEmpty ? [] : toldNames(of: node) {
        report(
          .read, at: moment, path: name.path, inode: number, offset: inside.lowerBound,
          length: UInt64(inside.count), changes: name.notes)
      }
    }
    if !ranges.isEmpty { flushBatch() }
  }

  // MARK: Hashes

  /// Hashes all files of which the policy asks for it.
  mutating func takeHashes() {
    guard configuration.policy.tellsHashes else { return }
    hashes.removeAll()
    for file in protectedFiles
    where configuration.policy.protection(forPath: file.path)?.attributes.contains(.sha256) == true {
      if hashes[file.number] == nil { hashes[file.number] = currentHash(file.number, file.inode) }
    }
  }

  private func currentHash(_ number: UInt32, _ inode: ExtInode) -> [UInt8]? {
    var limit = configuration.hashLimit
    var damage = DamageLog()
    return view?.fileSystem.contentHash(
      of: ExtListing(path: [], number: number, inode: inode), limit: &limit, damage: &damage)
  }

  /// Adds the hash before and after to the first event of each file whose contents changed. The hash after is that of the
  /// file as it is now, when this is called.
  mutating func addHashes(_ events: inout [FileEvent]) {
    var done: Set<UInt32> = []
    for index in events.indices {
      let event = events[index]
      guard [.create, .write, .append, .truncate, .replace].contains(event.operation), event.verdict == .allow,
        let number = UInt32(exactly: event.inode), let node = view?.nodes[number], node.inode.kind == .regular,
        configuration.policy.protection(forPath: event.path)?.attributes.contains(.sha256) == true,
        done.insert(number).inserted
      else { continue }
      let replaced = event.changes.first { $0.attribute == "inode" }.flatMap { UInt32($0.old) }
      let old = hashes[replaced ?? number]
      let new = currentHash(number, node.inode)
      hashes[number] = new
      if old != new || event.operation == .replace {
        events[index].changes.append(.init(attribute: "sha256", old: Self.hexadecimal(old), new: Self.hexadecimal(new)))
      }
    }
    // Without a view they are what the next one is compared with.
    if let view, hashes.count > view.nodes.count { hashes = hashes.filter { view.nodes[$0.key] != nil } }
  }

  static func hexadecimal(_ hash: [UInt8]?) -> String {
    (hash ?? []).map { $0.hexadecimal(width: 2) }.joined()
  }

  // MARK: Files as objects

  /// Goes on following files that lose a protected name where the policy protects the object, too.
  mutating func keepObjects(_ changes: NameChanges) {
    guard configuration.policy.rules.contains(where: \.followsObject) else { return }
    let named = Set(changes.appeared.filter { $0.action != nil }.map(\.inode))
    for item in changes.vanished where !item.isDone {
      guard let action = item.action, let new = item.current, new.isInUse, new.generation == item.settled?.generation,
        configuration.policy.protection(forPath: item.path)?.followsObject == true,
        !named.contains(item.inode)
      else { continue }
      let link = FileSystemView.Link(
        directory: FileSystemView.Link.formerDirectory, name: Array(item.path.dropFirst()), action: action)
      if view?.nodes[item.inode]?.links.contains(link) == false { view?.nodes[item.inode]?.links.append(link) }
    }
  }

  /// Tells the end of a file that was followed as an object, and ceases to follow it.
  mutating func giveUpObject(_ number: UInt32, _ node: FileSystemView.Node, at moment: Moment?) -> Bool {
    let former = node.links.filter(\.isFormer)
    guard !former.isEmpty, !node.inode.isInUse || node.inode.generation != node.settled.generation else { return false }
    for link in former {
      report(
        .unlink, at: moment ?? Moment(sequence: 0, time: .zero), path: view?.path(of: link) ?? [], inode: number,
        changes: [.init(attribute: "object", old: "", new: "the file that had this name is gone")])
    }
    view?.nodes[number]?.links.removeAll(where: \.isFormer)
    view?.nodes[number]?.settled = node.inode
    view?.unfollowIfUnused(number)
    return true
  }
}
