#define _GNU_SOURCE
#include "CLinux.h"
#include "SandboxFilter.h"

#include <linux/fs.h>
#include <sys/mman.h>

int vmfence_seccomp_disk(void) {
  const uint32_t forbidden = PROT_EXEC;
  struct sock_filter program[] = {
      FILTER_HEAD,
      // The guest's requests.
      ALLOW(recvfrom),
      ALLOW(sendto),
      ALLOW(pread64),
      ALLOW(preadv2),
      ALLOW(pwrite64),
      ALLOW(sendfile),
      ALLOW(rt_sigtimedwait),
      // cachestat(2), newer than many headers.
      WHEN(451, SECCOMP_RET_ALLOW),
      ALLOW(futex),
#if defined(SYS_epoll_wait)
      ALLOW(epoll_wait),
#endif
      ALLOW(epoll_pwait),
#if defined(SYS_poll)
      ALLOW(poll),
#endif
      ALLOW(ppoll),
      ALLOW(fdatasync),
      ALLOW(sync_file_range),
      ALLOW(fallocate),
      ALLOW(ftruncate),
      ALLOW(lseek),
      ALLOW(fadvise64),
      ALLOW_WHEN(ioctl, 1, BLKDISCARD),
      // Clients come and go on the socket that is open already; events go to files that are.
      ALLOW(accept4),
      ALLOW(setsockopt),
      ALLOW(shutdown),
      ALLOW(epoll_ctl),
      ALLOW(read),
      ALLOW(write),
      ALLOW(close),
      FILTER_THREAD_START,
      FILTER_MEMORY_AND_TIME,
      FILTER_END,
      // Nothing sound here comes near these.
      FILTER_TAIL,
  };
  return filter_all_threads(program, sizeof program / sizeof *program);
}
