// What Swift's Glibc module does not have: system calls without a wrapper in every supported C library, functions with
// variable arguments, and structures with unions. Nothing here holds state.
//
// Functions return what their system call returns, and set errno.
#ifndef VMFENCE_CLINUX_H
#define VMFENCE_CLINUX_H

#include <stddef.h>
#include <stdint.h>

#include "CLinuxBlock.h"

// memfd_create(2), close-on-exec and sealable.
int vmfence_memfd_create(const char *name);

// F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, and what is named.
enum vmfence_seal {
  VMFENCE_SEAL_SIZE = 0,
  // No new writable mapping; those that exist stay writable (F_SEAL_FUTURE_WRITE, Linux 5.1).
  VMFENCE_SEAL_FUTURE_WRITE = 1,
  // Nobody writes any more (F_SEAL_WRITE).
  VMFENCE_SEAL_WRITE = 2,
};
int vmfence_seal(int fd, enum vmfence_seal what);

// fcntl(F_DUPFD_CLOEXEC).
int vmfence_duplicate(int fd, int lowest);

// dup3(2).
int vmfence_replace_descriptor(int fd, int target);

// pidfd_open(2), Linux 5.3; close-on-exec.
int vmfence_pidfd_open(int pid);
// pidfd_send_signal(2), Linux 5.1.
int vmfence_pidfd_send_signal(int pidfd, int signal);

enum vmfence_wait {
  VMFENCE_WAIT_NOTHING = 0,
  VMFENCE_WAIT_EXITED = 1,
  VMFENCE_WAIT_KILLED = 2,
  VMFENCE_WAIT_STOPPED = 3,
};
// waitid(P_PIDFD), Linux 5.4. `status` is the exit code or signal. With `stops`, a stop is reported too; with `blocks`, the call
// waits. Returns an enum vmfence_wait, or -1. Repeats on EINTR.
int vmfence_pidfd_wait(int pidfd, int blocks, int stops, int *status);

// posix_spawn(3) of a program of ours: standard input and output are /dev/null, standard error is the caller's, the `number` descriptors from 3 on are those of
// `descriptors`, and there are no others; a process group of its own, no signal blocked or ignored. `pid` is set. Returns 0 or an error number.
#define VMFENCE_SPAWN_DESCRIPTORS 4
int vmfence_spawn(const char *path, const int *descriptors, int number, int *pid);

// socketpair(2) of unix sockets that keep messages apart (SOCK_SEQPACKET), close-on-exec; the first does not wait.
int vmfence_message_pair(int *ends);

// sendmsg(2) and recvmsg(2) with one descriptor (SCM_RIGHTS); -1 for none. Received descriptors are close-on-exec; where more than one comes, they are closed.
ptrdiff_t vmfence_send_descriptor(int socket, const void *bytes, size_t count, int fd);
ptrdiff_t vmfence_receive_descriptor(int socket, void *bytes, size_t count, int *fd, int waits);

// Parts of the sandbox, each for the calling process (which has one thread) and irrevocable. 0, or -1 with errno.
int vmfence_die_with_parent(void);
int vmfence_no_new_privileges(void);
int vmfence_not_dumpable(void);
// Landlock without any rule: no file can be opened, no TCP port bound or connected, as far as the kernel's version knows these
// rights. Returns the ABI version, or -1: ENOSYS or EOPNOTSUPP when the kernel has no Landlock or it is turned off.
int vmfence_landlock_nothing(void);
// The system calls a detector needs; all others fail with EPERM, and those that would start a program or reach into another
// process kill the process. Without `executable_memory`, no memory is made executable.
int vmfence_seccomp_detector(int executable_memory);

// The system calls of a process that serves a policy channel once its page is mapped: messages on its socket, memory, time. No device can be asked
// for anything any more (ioctl).
int vmfence_seccomp_channel(void);

// The same for a process that holds the hypervisor's handle: of ioctl(2), the one that makes a hypercall (IOCTL_PRIVCMD_HYPERCALL).
int vmfence_seccomp_hypervisor(void);

// The system calls of a process that holds the packet filter, for all of its threads (SECCOMP_FILTER_FLAG_TSYNC): messages on its sockets, how much room these have and who
// is told of changes (setsockopt), the number of an interface (SIOCGIFINDEX), memory, time. No socket can be opened any more.
int vmfence_seccomp_firewall(void);

// The system calls of a process that opens packet sockets: messages with descriptors on the socket `owner`, sockets of packet(7) that receive nothing, memory, time.
int vmfence_seccomp_capture(int owner);

// Programs that the calling thread starts get these of the capabilities that it has: root's do anyway, others' as ambient ones (capabilities(7)). 0, or -1 with errno.
int vmfence_pass_capabilities(uint64_t passed);

// setrlimit(2) of both limits; `resource` is one of these.
enum vmfence_limit {
  VMFENCE_LIMIT_CORE = 0,
  VMFENCE_LIMIT_OPEN_FILES = 1,
  VMFENCE_LIMIT_DATA = 2,
  VMFENCE_LIMIT_ADDRESS_SPACE = 3,
};
int vmfence_limit(enum vmfence_limit resource, uint64_t value);
// Raises the soft limit of open files to the hard one.
int vmfence_raise_open_files(void);

// Gives up every capability but those whose bits are set in `kept` (capabilities(7)): permitted, inheritable and ambient ones, and in the bounding set, so that no program
// that is started gets them back. Of those that are left, those of `effective` are in force; the others can be put in force again, and go to programs that root starts. Of the
// calling thread and of those that it starts. 0, or -1 with errno.
int vmfence_keep_capabilities(uint64_t kept, uint64_t effective);

// Gives up root: no supplementary groups, this user and group in all three places. What is permitted (capabilities(7)) goes with that unless it
// `keeps_capabilities` (PR_SET_KEEPCAPS), which then `vmfence_hold_capabilities` sorts. 0, or -1 with errno.
int vmfence_become(uint32_t user, uint32_t group, int keeps_capabilities);

// The calling thread holds those capabilities that are permitted and whose bits are set in `kept`, and no others; no program gets them from it unasked. 0, or -1 with errno.
int vmfence_hold_capabilities(uint64_t kept);

#endif
