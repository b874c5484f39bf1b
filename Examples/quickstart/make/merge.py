#!/usr/bin/env python3
"""Makes one pcapng file out of the two pcap files that were captured on one interface, one per direction.

usage: merge.py INTERFACE START IN.pcap OUT.pcap RESULT.pcapng

START is the time that becomes 2026-01-01T10:00:00Z. The direction of each frame goes into its flags (epb_flags), the interface's name
into its description, so that a reader knows both as a live capture does.
"""
import struct
import sys

EPOCH = 1767261600 * 10**9  # 2026-01-01T10:00:00Z
INBOUND, OUTBOUND = 1, 2


def frames(path, direction):
    with open(path, "rb") as file:
        magic, = struct.unpack("<I20x", file.read(24))
        assert magic == 0xA1B23C4D, f"{path}: expected little-endian nanosecond pcap"
        while header := file.read(16):
            seconds, nanoseconds, captured, original = struct.unpack("<IIII", header)
            yield seconds * 10**9 + nanoseconds, direction, original, file.read(captured)


def padded(data):
    return data + bytes(-len(data) % 4)


def option(code, value):
    return struct.pack("<HH", code, len(value)) + padded(value)


def block(kind, body):
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def main(interface, start, inbound, outbound, result):
    shift = EPOCH - int(start) * 10**9
    merged = sorted([*frames(inbound, INBOUND), *frames(outbound, OUTBOUND)], key=lambda frame: frame[0])
    with open(result, "wb") as file:
        file.write(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
        description = option(2, interface.encode()) + option(9, b"\x09") + option(0, b"")
        file.write(block(1, struct.pack("<HHI", 1, 0, 262144) + description))
        for time, direction, original, data in merged:
            time += shift
            header = struct.pack("<IIIII", 0, time >> 32, time & 0xFFFFFFFF, len(data), original)
            flags = option(2, struct.pack("<I", direction)) + option(0, b"")
            file.write(block(6, header + padded(data) + flags))
    print(f"{result}: {len(merged)} frames")


main(*sys.argv[1:])
