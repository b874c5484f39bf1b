#define _GNU_SOURCE
#include "CLinux.h"
#include "SandboxFilter.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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

// Puts it in force for the calling thread and those that it starts (seccomp(2)).
static int install(struct sock_filter *program, size_t count) {
  struct sock_fprog filter = {(unsigned short)count, program};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
}

#if defined(SYS_poll)
#define ALLOW_POLL ALLOW(poll), ALLOW(ppoll)
#else
#define ALLOW_POLL ALLOW(ppoll)
#endif
// Messages over the socket that is open.
#define FILTER_MESSAGES ALLOW(futex), ALLOW(sendto), ALLOW(recvfrom), ALLOW_POLL

int vmfence_seccomp_detector(int executable_memory) {
  uint32_t forbidden = executable_memory ? 0 : PROT_EXEC;
  struct sock_filter program[] = {
      FILTER_HEAD,
      // The socket to the supervisor: bells, and rule images.
      FILTER_MESSAGES,
      ALLOW(recvmsg),
      ALLOW(read),
      ALLOW(write),
      ALLOW(close),
      ALLOW(dup3),
      ALLOW(lseek),
      FILTER_MEMORY_AND_TIME,
      FILTER_END,
      // Nothing sound in a detector comes near these.
      FILTER_TAIL,
  };
  return install(program, sizeof program / sizeof *program);
}

int vmfence_seccomp_channel(void) {
  const uint32_t forbidden = PROT_EXEC;
  struct sock_filter program[] = {
      FILTER_HEAD,
      FILTER_MESSAGES,
      FILTER_MEMORY_AND_TIME,
      FILTER_END,
      // Nothing sound here comes near these.
      FILTER_TAIL,
  };
  return install(program, sizeof program / sizeof *program);
}

// _IOC(_IOC_NONE, 'P', 0, 48) of xen/include/uapi/xen/privcmd.h in the kernel: the call's number and five arguments.
#define PRIVCMD_HYPERCALL 0x00305000u

int vmfence_seccomp_hypervisor(void) {
  const uint32_t forbidden = PROT_EXEC;
  struct sock_filter program[] = {
      FILTER_HEAD,
      FILTER_MESSAGES,
      // Its buffers libxenctrl maps from /dev/xen/hypercall (mmap).
      ALLOW_WHEN(ioctl, 1, PRIVCMD_HYPERCALL),
      FILTER_MEMORY_AND_TIME,
      FILTER_END,
      // Nothing sound here comes near these.
      FILTER_TAIL,
  };
  return install(program, sizeof program / sizeof *program);
}

int vmfence_seccomp_capture(int owner) {
  const uint32_t forbidden = PROT_EXEC;
  struct sock_filter program[] = {
      FILTER_HEAD,
      ALLOW_WHEN(recvfrom, 0, owner),
      ALLOW_WHEN(sendmsg, 0, owner),
      ALLOW_POLL,
      ALLOW(futex),
      ALLOW(close),
      // What PacketSocket.open asks for, with the protocol 0, of which no frame is. There is no bind, no setsockopt and no recvmsg.
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 8),
      LOAD(ARGUMENT_LOW(0)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_PACKET, 0, 5),
      LOAD(ARGUMENT_LOW(1)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOCK_RAW | SOCK_CLOEXEC, 0, 3),
      LOAD(ARGUMENT_LOW(2)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
      RETURN(SECCOMP_RET_ALLOW),
      RETURN(DENY),
      FILTER_MEMORY_AND_TIME,
      FILTER_END,
      // Nothing sound here comes near these.
      FILTER_TAIL,
  };
  return install(program, sizeof program / sizeof *program);
}

#define WHEN_OPTION(option) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (option), 0, 1), RETURN(SECCOMP_RET_ALLOW)

int vmfence_seccomp_firewall(void) {
  const uint32_t forbidden = PROT_EXEC;
  struct sock_filter program[] = {
      FILTER_HEAD,
      FILTER_MESSAGES,
      // The numbers of a socket's and of a netlink socket's options overlap; what else these are at the other level is harmless.
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsockopt, 0, 10),
      LOAD(ARGUMENT_LOW(2)),
      WHEN_OPTION(SO_SNDBUF),
      WHEN_OPTION(SO_SNDBUFFORCE),
      WHEN_OPTION(NETLINK_ADD_MEMBERSHIP),
      WHEN_OPTION(NETLINK_DROP_MEMBERSHIP),
      RETURN(DENY),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 4),
      LOAD(ARGUMENT_LOW(1)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SIOCGIFINDEX, 0, 1),
      RETURN(SECCOMP_RET_ALLOW),
      RETURN(DENY),
      // For an error that says which power is missing.
      ALLOW(capget),
      FILTER_THREAD_START,
      FILTER_MEMORY_AND_TIME,
      FILTER_END,
      // Nothing sound here comes near these.
      FILTER_TAIL,
  };
  return filter_all_threads(program, sizeof program / sizeof *program);
}
