#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

// Landlock (Documentation/userspace-api/landlock.rst). The structure and numbers are the kernel's ABI and the same on
// every architecture; written out so that old headers do.
#define LANDLOCK_CREATE_RULESET 444
#define LANDLOCK_RESTRICT_SELF 446
#define LANDLOCK_VERSION_FLAG 1u

struct landlock_attributes {
  uint64_t handled_access_fs;
  uint64_t handled_access_net;
  uint64_t scoped;
};

int vmfence_landlock_nothing(void) {
  int version = (int)syscall(LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_VERSION_FLAG);
  if (version < 1) return -1;
  struct landlock_attributes attributes = {0, 0, 0};
  // 13 rights in version 1, then: refer (2), truncate (3), ioctl on devices (5).
  attributes.handled_access_fs = (1u << 13) - 1;
  if (version >= 2) attributes.handled_access_fs |= 1u << 13;
  if (version >= 3) attributes.handled_access_fs |= 1u << 14;
  if (version >= 5) attributes.handled_access_fs |= 1u << 15;
  size_t size = sizeof(uint64_t);
  if (version >= 4) {
    // Bind and connect TCP.
    attributes.handled_access_net = 3;
    size = 2 * sizeof(uint64_t);
  }
  if (version >= 6) {
    // Abstract unix sockets and signals, to outside of the sandbox.
    attributes.scoped = 3;
    size = 3 * sizeof(uint64_t);
  }
  int ruleset = (int)syscall(LANDLOCK_CREATE_RULESET, &attributes, size, 0);
  if (ruleset == -1) return -1;
  int result = (int)syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0);
  int error = errno;
  close(ruleset);
  errno = error;
  return result == -1 ? -1 : version;
}

#if defined(__x86_64__)
#define DETECTOR_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define DETECTOR_ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the detector's system call filter has not been written for this architecture"
#endif

// The machine is little-endian on both, so an argument's low half comes first.
#define ARGUMENT_LOW(n) (uint32_t)(offsetof(struct seccomp_data, args) + (n) * sizeof(uint64_t))
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(field))
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, (action))
// `number` is in the accumulator, before and after.
#define WHEN(number, action) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), RETURN(action)
#define ALLOW(name) WHEN(SYS_##name, SECCOMP_RET_ALLOW)
#define KILL(name) WHEN(SYS_##name, SECCOMP_RET_KILL_PROCESS)
#define DENY SECCOMP_RET_ERRNO | EPERM
// Allowed unless the third argument (protection) asks for execution, or `executable` says that it may.
#define ALLOW_MEMORY(name)                                        \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4),          \
      LOAD(ARGUMENT_LOW(2)),                                      \
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, forbidden, 0, 1),      \
      RETURN(DENY),                                               \
      RETURN(SECCOMP_RET_ALLOW)

int vmfence_seccomp_detector(int executable_memory) {
  uint32_t forbidden = executable_memory ? 0 : PROT_EXEC;
  struct sock_filter program[] = {
      LOAD(offsetof(struct seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, DETECTOR_ARCHITECTURE, 1, 0),
      RETURN(SECCOMP_RET_KILL_PROCESS),
      LOAD(offsetof(struct seccomp_data, nr)),
#if defined(__x86_64__)
      // The x32 calls have numbers of their own from here on.
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000u, 0, 1),
      RETURN(SECCOMP_RET_KILL_PROCESS),
#endif
      // The socket to the supervisor: bells, and rule images.
      ALLOW(futex),
      ALLOW(sendto),
      ALLOW(recvfrom),
      ALLOW(recvmsg),
#if defined(SYS_poll)
      ALLOW(poll),
#endif
      ALLOW(ppoll),
      ALLOW(read),
      ALLOW(write),
      ALLOW(close),
      ALLOW(dup3),
      ALLOW(lseek),
      // The allocator.
      ALLOW_MEMORY(mmap),
      ALLOW_MEMORY(mprotect),
      ALLOW(munmap),
      ALLOW(mremap),
      ALLOW(madvise),
      ALLOW(brk),
      // Time, identity, chance.
      ALLOW(clock_gettime),
      ALLOW(gettimeofday),
      ALLOW(getrandom),
      ALLOW(getpid),
      ALLOW(gettid),
      ALLOW(sched_yield),
      ALLOW(restart_syscall),
      // The end: `exit`, and `abort`, which signals the own process and nobody else.
      ALLOW(exit),
      ALLOW(exit_group),
      ALLOW(rt_sigreturn),
      ALLOW(rt_sigprocmask),
      ALLOW(rt_sigaction),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 0, 4),
      LOAD(ARGUMENT_LOW(0)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)getpid(), 0, 1),
      RETURN(SECCOMP_RET_ALLOW),
      RETURN(DENY),
      // Nothing sound in a detector comes near these.
      KILL(execve),
      KILL(execveat),
      KILL(clone),
#if defined(SYS_clone3)
      KILL(clone3),
#endif
#if defined(SYS_fork)
      KILL(fork),
      KILL(vfork),
#endif
      KILL(ptrace),
      KILL(process_vm_readv),
      KILL(process_vm_writev),
      RETURN(DENY),
  };
  struct sock_fprog filter = {(unsigned short)(sizeof program / sizeof *program), program};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
}
