import VMFenceCore

/// Another adapter: an event sink that prints each event as a line of EVE JSON.
public struct PrintingSink: EventSink {
  public let encoder: EVEEncoder

  public init(encoder: EVEEncoder) { self.encoder = encoder }

  public func receive(_ event: Event) async { print(String(decoding: encoder.encode(event), as: UTF8.self)) }
}
