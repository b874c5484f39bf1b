import Testing
import VMFenceCore
import VMFenceXen

/// What a guest writes about its page, which may be anything.
@Suite("Offers of pages")
struct XenChannelTests {
  private func offer(_ text: String) -> XenChannelOffer? { XenChannelOffer(Array(text.utf8)) }

  @Test("one or two decimal numbers are an offer")
  func offers() {
    #expect(offer("8") == XenChannelOffer(reference: 8))
    #expect(offer("8 12") == XenChannelOffer(reference: 8, port: 12))
    #expect(offer("4294967295 0") == XenChannelOffer(reference: .max, port: 0))
  }

  @Test(
    "anything else is none",
    arguments: [
      "", " ", "8 ", " 8", "8  9", "8 9 10", "-1", "+8", "0x8", "4294967296", "99999999999999999999", "8\n", "8\0",
      "8,9",
      "８", "8 x", String(repeating: "1", count: 4096),
    ])
  func others(text: String) {
    #expect(offer(text) == nil)
  }

  @Test("it is read from the guest's subtree, and no more of it than an offer has")
  func reading() throws {
    let xen = FakeXen()
    #expect(try XenChannelOffer.read(of: DomainID(7), from: xen) == nil)
    xen.set("/local/domain/7/data/vmfence/offer", "8 12")
    #expect(try XenChannelOffer.read(of: DomainID(7), from: xen) == XenChannelOffer(reference: 8, port: 12))
    xen.set("/local/domain/7/data/vmfence/offer", "8" + String(repeating: " ", count: 100_000))
    #expect(try XenChannelOffer.read(of: DomainID(7), from: xen) == nil)
    // What begins as an offer and goes on behind the limit is none.
    xen.set("/local/domain/7/data/vmfence/offer", String(repeating: "0", count: 31) + "8" + "9")
    #expect(try XenChannelOffer.read(of: DomainID(7), from: xen) == nil)
  }
}
