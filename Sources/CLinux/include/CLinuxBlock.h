// System calls of the block path: files and block devices, unix sockets, readiness. As in CLinux.h, functions return what
// their system call returns, and set errno.
#ifndef VMFENCE_CLINUX_BLOCK_H
#define VMFENCE_CLINUX_BLOCK_H

#include <stddef.h>
#include <stdint.h>

// preadv2(RWF_NOWAIT): only what needs no waiting; EAGAIN when nothing does.
ptrdiff_t vmfence_read_cached(int fd, void *bytes, size_t count, int64_t offset);

// cachestat(2), Linux 6.5: 1 when the page cache has all of the range, read to its end; 0 when it has not, or when nobody can tell.
int vmfence_is_cached(int fd, int64_t offset, int64_t count);

// fallocate(2) with FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE: reads as zeroes, and its space is given back.
int vmfence_punch_hole(int fd, int64_t offset, int64_t count);
// fallocate(2) with FALLOC_FL_KEEP_SIZE and FALLOC_FL_ZERO_RANGE: reads as zeroes, and its space stays.
int vmfence_zero_range(int fd, int64_t offset, int64_t count);
// ioctl(BLKDISCARD): the device may forget the range.
int vmfence_device_discard(int fd, uint64_t offset, uint64_t count);
// lseek(SEEK_DATA) and lseek(SEEK_HOLE).
int64_t vmfence_seek_data(int fd, int64_t offset);
int64_t vmfence_seek_hole(int fd, int64_t offset);
// posix_fadvise(POSIX_FADV_WILLNEED); an error number, not errno.
int vmfence_read_ahead(int fd, int64_t offset, int64_t count);
// sync_file_range(2), SYNC_FILE_RANGE_WRITE.
int vmfence_start_write_back(int fd, int64_t offset, int64_t count);
// flock(LOCK_EX | LOCK_NB).
int vmfence_lock_file(int fd);

// A listening unix stream socket at `path`, close-on-exec and non-blocking, its file with these permissions. A socket file
// that nobody listens on is replaced; where somebody listens, EADDRINUSE.
int vmfence_unix_listen(const char *path, unsigned mode, int backlog);
// A connected unix stream socket.
int vmfence_unix_connect(const char *path);
// accept4(2): close-on-exec, blocking. Waits in it end after these many microseconds, and its send buffer is `send_buffer`
// bytes if the kernel allows so many.
int vmfence_unix_accept(int listener, int64_t receive_us, int64_t send_us, int send_buffer);
// recv(2). Waits as the last argument says: not at all (MSG_DONTWAIT), for all of `count` (MSG_WAITALL), or for any of it.
#define VMFENCE_WAIT_NOT 0
#define VMFENCE_WAIT_ALL 1
#define VMFENCE_WAIT_ANY 2
ptrdiff_t vmfence_receive(int socket, void *bytes, size_t count, int waits);
// send(2) with MSG_NOSIGNAL, and MSG_DONTWAIT unless it `waits`.
ptrdiff_t vmfence_send(int socket, const void *bytes, size_t count, int waits);
// sendfile(2) from `offset`, without the signal that it raises when the peer has gone. It waits as vmfence_send does.
ptrdiff_t vmfence_send_file(int socket, int fd, int64_t offset, size_t count);

// eventfd(2), non-blocking and close-on-exec. Ringing it is allowed in a signal handler.
int vmfence_event_make(void);
void vmfence_event_ring(int fd);
void vmfence_event_clear(int fd);

// epoll(7). `token` comes back with each event. Writability is watched for only where `writable`.
int vmfence_epoll_make(void);
int vmfence_epoll_add(int epoll, int fd, uint64_t token);
int vmfence_epoll_watch(int epoll, int fd, uint64_t token, int readable, int writable);
enum { VMFENCE_EPOLL_EVENTS = 32 };
// Fills `tokens` (VMFENCE_EPOLL_EVENTS of them); -1 waits for ever. EINTR counts as 0 events.
int vmfence_epoll_wait(int epoll, uint64_t *tokens, int timeout_ms);

// The system calls that a process on the block path needs once everything is open, for all of its threads
// (SECCOMP_FILTER_FLAG_TSYNC); others fail with EPERM, and those that would start a program or reach into another process
// kill the process.
int vmfence_seccomp_disk(void);

#endif
