#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// Constants of newer headers than a build machine may have; the numbers are the kernel's ABI.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define VMFENCE_P_PIDFD 3

int vmfence_memfd_create(const char *name) { return memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING); }

int vmfence_seal(int fd, enum vmfence_seal what) {
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (what == VMFENCE_SEAL_FUTURE_WRITE) seals |= F_SEAL_FUTURE_WRITE;
  if (what == VMFENCE_SEAL_WRITE) seals |= F_SEAL_WRITE;
  return fcntl(fd, F_ADD_SEALS, seals);
}

int vmfence_message_pair(int *ends) {
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == -1) return -1;
  if (fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0) return 0;
  int error = errno;
  close(ends[0]);
  close(ends[1]);
  errno = error;
  return -1;
}

int vmfence_duplicate(int fd, int lowest) { return fcntl(fd, F_DUPFD_CLOEXEC, lowest); }

int vmfence_replace_descriptor(int fd, int target) { return dup3(fd, target, 0); }

int vmfence_pidfd_open(int pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

int vmfence_pidfd_send_signal(int pidfd, int signal) {
  return (int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0);
}

int vmfence_pidfd_wait(int pidfd, int blocks, int stops, int *status) {
  siginfo_t info;
  int options = WEXITED | (stops ? WSTOPPED : 0) | (blocks ? 0 : WNOHANG);
  int result;
  do {
    memset(&info, 0, sizeof info);
    result = waitid((idtype_t)VMFENCE_P_PIDFD, (id_t)pidfd, &info, options);
  } while (result == -1 && errno == EINTR);
  if (result == -1) return -1;
  if (info.si_pid == 0) return VMFENCE_WAIT_NOTHING;
  *status = info.si_status;
  switch (info.si_code) {
    case CLD_EXITED: return VMFENCE_WAIT_EXITED;
    case CLD_STOPPED: return VMFENCE_WAIT_STOPPED;
    default: return VMFENCE_WAIT_KILLED;
  }
}

union descriptor_buffer {
  struct cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(int))];
};

ptrdiff_t vmfence_send_descriptor(int socket, const void *bytes, size_t count, int fd) {
  struct iovec vector = {(void *)bytes, count};
  union descriptor_buffer control;
  struct msghdr message = {0};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    memset(&control, 0, sizeof control);
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
  }
  return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

ptrdiff_t vmfence_receive_descriptor(int socket, void *bytes, size_t count, int *fd, int waits) {
  struct iovec vector = {bytes, count};
  union descriptor_buffer control;
  struct msghdr message = {0};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  *fd = -1;
  ptrdiff_t result = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | (waits ? 0 : MSG_DONTWAIT));
  if (result < 0) return result;
  // The room that one takes may be enough for two. Whoever sends several has none of them taken, and all are closed.
  int number = 0;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= header->cmsg_len; at += sizeof(int)) {
      int each;
      memcpy(&each, (const char *)header + at, sizeof each);
      if (number++ == 0)
        *fd = each;
      else
        close(each);
    }
  }
  if (*fd >= 0 && (number > 1 || message.msg_flags & MSG_CTRUNC)) {
    close(*fd);
    *fd = -1;
  }
  return result;
}

int vmfence_limit(enum vmfence_limit resource, uint64_t value) {
  struct rlimit limit = {value, value};
  switch (resource) {
    case VMFENCE_LIMIT_CORE: return setrlimit(RLIMIT_CORE, &limit);
    case VMFENCE_LIMIT_OPEN_FILES: return setrlimit(RLIMIT_NOFILE, &limit);
    case VMFENCE_LIMIT_DATA: return setrlimit(RLIMIT_DATA, &limit);
    case VMFENCE_LIMIT_ADDRESS_SPACE: return setrlimit(RLIMIT_AS, &limit);
  }
  errno = EINVAL;
  return -1;
}

int vmfence_raise_open_files(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == -1) return -1;
  if (limit.rlim_cur == limit.rlim_max) return 0;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit);
}

int vmfence_become(uint32_t user, uint32_t group, int keeps_capabilities) {
  if (prctl(PR_SET_KEEPCAPS, keeps_capabilities ? 1 : 0, 0, 0, 0) == -1) return -1;
  if (setgroups(0, NULL) == -1) return -1;
  if (setresgid(group, group, group) == -1) return -1;
  return setresuid(user, user, user);
}

// capset(2): two words of each set.
static int hold(uint64_t kept, uint64_t effective) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
  if (syscall(SYS_capget, &header, sets) == -1) return -1;
  for (int word = 0; word < _LINUX_CAPABILITY_U32S_3; word++) {
    uint32_t mask = (uint32_t)(kept >> 32 * word);
    sets[word].permitted &= mask;
    sets[word].effective = sets[word].permitted & (uint32_t)(effective >> 32 * word);
    sets[word].inheritable &= mask;
  }
  if (syscall(SYS_capset, &header, sets) == -1) return -1;
  return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

int vmfence_hold_capabilities(uint64_t kept) { return hold(kept, kept); }

int vmfence_pass_capabilities(uint64_t passed) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
  if (geteuid() == 0) return 0;
  if (syscall(SYS_capget, &header, sets) == -1) return -1;
  for (int word = 0; word < _LINUX_CAPABILITY_U32S_3; word++) {
    uint32_t mask = (uint32_t)(passed >> 32 * word) & sets[word].permitted;
    sets[word].inheritable |= mask;
    passed = (passed & ~((uint64_t)UINT32_MAX << 32 * word)) | (uint64_t)mask << 32 * word;
  }
  if (syscall(SYS_capset, &header, sets) == -1) return -1;
  for (int capability = 0; capability < 64; capability++) {
    if ((passed >> capability & 1) == 0) continue;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == -1) return -1;
  }
  return 0;
}

int vmfence_keep_capabilities(uint64_t kept, uint64_t effective) {
  for (int capability = 0; capability < 64 && prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
    if (kept >> capability & 1 || prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 0) continue;
    // Without CAP_SETPCAP that set stays. Then what the caller lacks is kept from programs only by no_new_privs(2), or because it is not root.
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == -1 && errno != EPERM) return -1;
  }
  return hold(kept, effective);
}

int vmfence_die_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); }
int vmfence_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
int vmfence_not_dumpable(void) { return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }
