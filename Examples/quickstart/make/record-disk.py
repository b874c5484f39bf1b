#!/usr/bin/env python3
"""An NBD server that records: serves a raw image over a unix socket and writes down every request.

usage: record-disk.py IMAGE NBD_SOCKET MARK_SOCKET TRACE.jsonl TRACE.bin

TRACE.jsonl gets a line for each request (seq, t_ns since the first request, op, off, len, fua, pos), TRACE.bin the
data of writes, one after the other. A line of text sent to MARK_SOCKET becomes a line with op "mark"; "quit" ends the
server. Protocol: fixed newstyle of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, one client.
"""
import json
import os
import socket
import struct
import sys
import threading
import time

REQUEST, REPLY = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6
# has flags, flush, FUA, trim, write zeroes
FLAGS = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6


class Recorder:
    def __init__(self, jsonl, data):
        self.jsonl, self.data = open(jsonl, "w"), open(data, "wb")
        self.sequence, self.position, self.start = 0, 0, None
        self.lock = threading.Lock()

    def line(self, op, **fields):
        with self.lock:
            now = time.monotonic_ns()
            self.start = self.start or now
            self.jsonl.write(json.dumps({"seq": self.sequence, "t_ns": now - self.start, "op": op, **fields}) + "\n")
            self.sequence += 1

    def write(self, off, data, fua):
        self.data.write(data)
        position, self.position = self.position, self.position + len(data)
        self.line("write", off=off, len=len(data), fua=fua, pos=position)


def receive(connection, count):
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def negotiate(connection, size):
    connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1 | 2))
    (client,) = struct.unpack(">I", receive(connection, 4))
    while True:
        _, option, length = struct.unpack(">QII", receive(connection, 16))
        receive(connection, length)

        def reply(kind, body=b""):
            connection.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(body)) + body)

        if option == 1:  # NBD_OPT_EXPORT_NAME
            connection.sendall(struct.pack(">QH", size, FLAGS) + (b"" if client & 2 else bytes(124)))
            return
        if option in (6, 7):  # NBD_OPT_INFO, NBD_OPT_GO
            reply(3, struct.pack(">HQH", 0, size, FLAGS))
            reply(1)
            if option == 7:
                return
        elif option == 2:  # NBD_OPT_ABORT
            reply(1)
            raise EOFError
        else:
            reply(0x80000001)  # unsupported


def serve(connection, image, recorder):
    size = os.fstat(image).st_size
    negotiate(connection, size)
    while True:
        magic, flags, kind, handle, off, length = struct.unpack(">IHHQQI", receive(connection, 28))
        assert magic == REQUEST
        body = receive(connection, length) if kind == WRITE else b""
        error, answer = 0, b""
        if kind == DISCONNECT:
            return
        if kind != FLUSH and off + length > size:
            error = 22
        elif kind == READ:
            recorder.line("read", off=off, len=length)
            answer = os.pread(image, length, off)
        elif kind == WRITE:
            recorder.write(off, body, bool(flags & 1))
            os.pwrite(image, body, off)
        elif kind == FLUSH:
            recorder.line("flush")
        elif kind in (TRIM, ZERO):
            recorder.line("trim" if kind == TRIM else "zero", off=off, len=length, fua=bool(flags & 1))
            os.pwrite(image, bytes(length), off)
        else:
            error = 22
        connection.sendall(struct.pack(">IIQ", REPLY, error, handle) + answer)


def take_marks(path, recorder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marks:
        marks.bind(path)
        while True:
            text = marks.recv(4096).decode()
            if text == "quit":
                recorder.jsonl.close()
                recorder.data.close()
                os._exit(0)
            recorder.line("mark", note=text)


def main():
    image_path, nbd_path, mark_path, jsonl, data = sys.argv[1:]
    image = os.open(image_path, os.O_RDWR)
    recorder = Recorder(jsonl, data)
    threading.Thread(target=take_marks, args=(mark_path, recorder), daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(nbd_path)
        listener.listen(4)
        while True:
            connection, _ = listener.accept()
            try:
                serve(connection, image, recorder)
            except (EOFError, ConnectionError):
                pass
            finally:
                connection.close()


main()
