// The parts of which the system call filters are made (seccomp(2), linux/filter.h).
#ifndef VMFENCE_SANDBOX_FILTER_H
#define VMFENCE_SANDBOX_FILTER_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define FILTER_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define FILTER_ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the system call filters have not been written for this architecture"
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
// Allowed when argument `n` is `value`.
#define ALLOW_WHEN(name, n, value)                                \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4),          \
      LOAD(ARGUMENT_LOW(n)),                                      \
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, 1), \
      RETURN(SECCOMP_RET_ALLOW),                                  \
      RETURN(DENY)
// Allowed unless the third argument (protection) asks for execution, or `executable` says that it may.
#define ALLOW_MEMORY(name)                                        \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 4),          \
      LOAD(ARGUMENT_LOW(2)),                                      \
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, forbidden, 0, 1),      \
      RETURN(DENY),                                               \
      RETURN(SECCOMP_RET_ALLOW)

#if defined(__x86_64__)
// The x32 calls have numbers of their own from here on.
#define WITHOUT_X32 , BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000u, 0, 1), RETURN(SECCOMP_RET_KILL_PROCESS)
#else
#define WITHOUT_X32
#endif
// How a filter begins: another architecture's calls have other numbers. Leaves the call's number in the accumulator.
#define FILTER_HEAD                                                       \
  LOAD(offsetof(struct seccomp_data, arch)),                              \
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCHITECTURE, 1, 0),     \
      RETURN(SECCOMP_RET_KILL_PROCESS),                                   \
      LOAD(offsetof(struct seccomp_data, nr)) WITHOUT_X32
// The allocator; time, identity, chance. Uses the variable `forbidden`.
#define FILTER_MEMORY_AND_TIME                                            \
  ALLOW_MEMORY(mmap), ALLOW_MEMORY(mprotect), ALLOW(munmap), ALLOW(mremap), ALLOW(madvise), ALLOW(brk), \
      ALLOW(clock_gettime), ALLOW(gettimeofday), ALLOW(getrandom), ALLOW(getpid), ALLOW(gettid), ALLOW(sched_yield), \
      ALLOW(restart_syscall)
// SYS_rseq, newer than some headers.
#if defined(__x86_64__)
#define RSEQ 334
#else
#define RSEQ 293
#endif
// A thread that has been made and has not run yet asks for these first; without rseq(2) glibc, from 2.35 on, would abort. For filters of all threads.
#define FILTER_THREAD_START ALLOW(set_robust_list), WHEN(RSEQ, SECCOMP_RET_ALLOW)
// The end of a process: `exit`, and `abort`, which signals the own process and nobody else.
#define FILTER_END                                                        \
  ALLOW(exit), ALLOW(exit_group), ALLOW(rt_sigreturn), ALLOW(rt_sigprocmask), ALLOW(rt_sigaction), \
      ALLOW_WHEN(tgkill, 0, getpid())
#if defined(SYS_fork)
#define KILL_FORK , KILL(fork), KILL(vfork)
#else
#define KILL_FORK
#endif
#if defined(SYS_clone3)
#define KILL_CLONE3 , KILL(clone3)
#else
#define KILL_CLONE3
#endif
// How a filter ends: what kills, and the refusal of all that was not allowed.
#define FILTER_TAIL                                                       \
  KILL(execve), KILL(execveat), KILL(clone) KILL_CLONE3 KILL_FORK, KILL(ptrace), KILL(process_vm_readv), \
      KILL(process_vm_writev), RETURN(DENY)

// Puts it in force for all threads of the process. The number of a thread that could not be brought along is an error, too.
static inline int filter_all_threads(struct sock_filter *program, size_t count) {
  struct sock_fprog filter = {(unsigned short)count, program};
  long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
  if (result > 0) errno = EAGAIN;
  return result == 0 ? 0 : -1;
}

#endif
