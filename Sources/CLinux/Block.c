#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

ptrdiff_t vmfence_read_cached(int fd, void *bytes, size_t count, int64_t offset) {
  struct iovec vector = {bytes, count};
  return preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
}

int vmfence_is_cached(int fd, int64_t offset, int64_t count) {
  // linux/mman.h, in the headers since Linux 6.5; the system call has one number on all architectures.
  struct {
    uint64_t offset, length;
  } range = {(uint64_t)offset, (uint64_t)count};
  struct {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } found = {0};
  if (syscall(451, fd, &range, &found, 0) == -1) return 0;
  int64_t page = sysconf(_SC_PAGESIZE);
  if (found.cached != (uint64_t)((offset + count - 1) / page - offset / page + 1)) return 0;
  // Pages that are still being read count, too, and whoever sends them would wait for the disk. The last one is there last.
  char byte;
  return vmfence_read_cached(fd, &byte, 1, offset + count - 1) == 1;
}

int vmfence_punch_hole(int fd, int64_t offset, int64_t count) {
  return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, count);
}

int vmfence_zero_range(int fd, int64_t offset, int64_t count) {
  return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE, offset, count);
}

int vmfence_device_discard(int fd, uint64_t offset, uint64_t count) {
  uint64_t range[2] = {offset, count};
  return ioctl(fd, BLKDISCARD, range);
}

int64_t vmfence_seek_data(int fd, int64_t offset) { return lseek(fd, offset, SEEK_DATA); }
int64_t vmfence_seek_hole(int fd, int64_t offset) { return lseek(fd, offset, SEEK_HOLE); }

int vmfence_read_ahead(int fd, int64_t offset, int64_t count) {
  return posix_fadvise(fd, offset, count, POSIX_FADV_WILLNEED);
}

int vmfence_start_write_back(int fd, int64_t offset, int64_t count) {
  return sync_file_range(fd, offset, count, SYNC_FILE_RANGE_WRITE);
}

int vmfence_lock_file(int fd) { return flock(fd, LOCK_EX | LOCK_NB); }

static int close_with(int fd, int error) {
  close(fd);
  errno = error;
  return -1;
}

static int unix_address(const char *path, struct sockaddr_un *address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address->sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(address->sun_path, path);
  return 0;
}

int vmfence_unix_connect(const char *path) {
  struct sockaddr_un address;
  if (unix_address(path, &address) == -1) return -1;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd == -1) return -1;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == -1) return close_with(fd, errno);
  return fd;
}

// Removes a socket file that nobody listens on. 0, or -1 when it must not be taken.
static int remove_stale(const char *path) {
  struct stat status;
  if (lstat(path, &status) == -1) return errno == ENOENT ? 0 : -1;
  if (!S_ISSOCK(status.st_mode)) {
    errno = EEXIST;
    return -1;
  }
  int other = vmfence_unix_connect(path);
  if (other >= 0) return close_with(other, EADDRINUSE);
  if (errno != ECONNREFUSED) return -1;
  return unlink(path);
}

int vmfence_unix_listen(const char *path, unsigned mode, int backlog) {
  struct sockaddr_un address;
  if (unix_address(path, &address) == -1 || remove_stale(path) == -1) return -1;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd == -1) return -1;
  // Nobody can connect before listen(2), so the permissions are in force before the first connection.
  if (bind(fd, (struct sockaddr *)&address, sizeof address) == -1) return close_with(fd, errno);
  if (chmod(path, (mode_t)mode) == -1 || listen(fd, backlog) == -1) {
    int error = errno;
    unlink(path);
    return close_with(fd, error);
  }
  return fd;
}

static struct timeval microseconds(int64_t count) {
  struct timeval value = {count / 1000000, count % 1000000};
  return value;
}

int vmfence_unix_accept(int listener, int64_t receive_us, int64_t send_us, int send_buffer) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd == -1) return -1;
  struct timeval receive = microseconds(receive_us), send = microseconds(send_us);
  if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive) == -1 ||
      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &send, sizeof send) == -1)
    return close_with(fd, errno);
  // Beyond net.core.wmem_max for root only; less is slower, not wrong.
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &send_buffer, sizeof send_buffer) == -1)
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
  return fd;
}

ptrdiff_t vmfence_receive(int socket, void *bytes, size_t count, int waits) {
  int flags = waits == VMFENCE_WAIT_NOT ? MSG_DONTWAIT : waits == VMFENCE_WAIT_ALL ? MSG_WAITALL : 0;
  return recv(socket, bytes, count, flags);
}

ptrdiff_t vmfence_send(int socket, const void *bytes, size_t count, int waits) {
  return send(socket, bytes, count, MSG_NOSIGNAL | (waits ? 0 : MSG_DONTWAIT));
}

ptrdiff_t vmfence_send_file(int socket, int fd, int64_t offset, size_t count) {
  sigset_t broken, before;
  sigemptyset(&broken);
  sigaddset(&broken, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &broken, &before);
  off_t position = offset;
  ptrdiff_t result = sendfile(socket, fd, &position, count);
  int error = errno;
  // It was raised in this thread, after a part was sent as well: then the result is that part, and no error. Whoever blocked
  // it before wants to see it pending.
  if (result != (ptrdiff_t)count && !sigismember(&before, SIGPIPE)) {
    struct timespec now = {0, 0};
    while (sigtimedwait(&broken, NULL, &now) == -1 && errno == EINTR) {}
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = error;
  return result;
}

int vmfence_event_make(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

void vmfence_event_ring(int fd) {
  int error = errno;
  uint64_t one = 1;
  // It fails only when it has been rung 2^64 - 2 times, and then it is rung.
  ssize_t ignored = write(fd, &one, sizeof one);
  (void)ignored;
  errno = error;
}

void vmfence_event_clear(int fd) {
  uint64_t count;
  ssize_t ignored = read(fd, &count, sizeof count);
  (void)ignored;
}

int vmfence_epoll_make(void) { return epoll_create1(EPOLL_CLOEXEC); }

int vmfence_epoll_add(int epoll, int fd, uint64_t token) {
  struct epoll_event event = {EPOLLIN, {.u64 = token}};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int vmfence_epoll_watch(int epoll, int fd, uint64_t token, int readable, int writable) {
  struct epoll_event event = {(readable ? EPOLLIN : 0u) | (writable ? EPOLLOUT : 0u), {.u64 = token}};
  return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

int vmfence_epoll_wait(int epoll, uint64_t *tokens, int timeout_ms) {
  struct epoll_event events[VMFENCE_EPOLL_EVENTS];
  int count = epoll_wait(epoll, events, VMFENCE_EPOLL_EVENTS, timeout_ms);
  if (count == -1) return errno == EINTR ? 0 : -1;
  for (int i = 0; i < count; i++) tokens[i] = events[i].data.u64;
  return count;
}
