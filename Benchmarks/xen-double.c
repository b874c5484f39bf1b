// A host with Xen that is none, for Benchmarks/watcher: libxenctrl, libxenstore and the files that say that this is Dom0, over a file that the benchmark
// writes. One library under three names; the third is preloaded.
//
// What it shows lies in the folder above that of the library. `domains`: so many structures as libxenctrl 4.17 fills in (xc_domaininfo_t), and behind them a
// number for each, which is a part of the domain's name. Events of watches are lines in the FIFO `events`. `release`, where there is one: the hypervisor's, as
// `4.18`. Tests of the process that holds the hypervisor's handle take it, too.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE 112
#define FLAGS 4
#define PAUSED 8u

static uint8_t *domains;
static size_t count;

// The folder is found by the library's own path, FOLDER/lib/NAME: of the environment a process may be given nothing.
static void path_of(char *path, size_t size, const char *name) {
  Dl_info self;
  if (dladdr((void *)path_of, &self) == 0) abort();
  size_t length = strlen(self.dli_fname);
  for (int slashes = 0; length > 0 && slashes < 2;)
    if (self.dli_fname[--length] == '/') slashes++;
  snprintf(path, size, "%.*s/%s", (int)length, self.dli_fname, name);
}

static void attach(void) {
  if (domains != NULL) return;
  char path[4096];
  path_of(path, sizeof path, "domains");
  int file = open(path, O_RDWR);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0) abort();
  count = (size_t)status.st_size / (SIZE + 4);
  domains = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
}

// libxenctrl

void *xc_interface_open(void *logger, void *dombuild, unsigned flags) {
  attach();
  return domains;
}
int xc_interface_close(void *interface) { return 0; }
int xc_version(void *interface, int what, void *arg) {
  char path[4096];
  int major = 4, minor = 17;
  path_of(path, sizeof path, "release");
  FILE *file = fopen(path, "r");
  if (file != NULL) {
    if (fscanf(file, "%d.%d", &major, &minor) != 2) abort();
    fclose(file);
  }
  return major << 16 | minor;
}
int xc_domain_getinfolist(void *interface, uint32_t first, unsigned int limit, void *out) {
  unsigned int found = 0;
  for (size_t i = 0; i < count && found < limit; i++) {
    uint16_t number;
    memcpy(&number, domains + i * SIZE, sizeof number);
    if (number >= first) memcpy((uint8_t *)out + found++ * SIZE, domains + i * SIZE, SIZE);
  }
  return (int)found;
}
static int change(uint32_t domid, uint32_t set, uint32_t clear) {
  if (domid == 0 || domid > count) return errno = ESRCH, -1;
  uint32_t *flags = (uint32_t *)(domains + (domid - 1) * SIZE + FLAGS);
  *flags = (*flags | set) & ~clear;
  return 0;
}
int xc_domain_pause(void *interface, uint32_t domid) { return change(domid, PAUSED, 0); }
int xc_domain_unpause(void *interface, uint32_t domid) { return change(domid, 0, PAUSED); }
// Tries what a process that only holds the hypervisor's handle cannot do. It is done when any of it can be; else the error is that of the last.
int xc_domain_shutdown(void *interface, uint32_t domid, int reason) {
  if (open("/dev/null", O_RDONLY) >= 0 || socket(AF_INET, SOCK_STREAM, 0) >= 0 || ioctl(3, FIONREAD, &reason) >= 0 || kill(getppid(), 0) == 0) return 0;
  return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}
int xc_domain_destroy(void *interface, uint32_t domid) { return errno = ENOSYS, -1; }

// libxenstore

static int events = -1;
static char pending[65536];
static size_t filled;

void *xs_open(unsigned long flags) {
  attach();
  if (events < 0) {
    char path[4096];
    path_of(path, sizeof path, "events");
    events = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  }
  return &events;
}
void xs_close(void *store) {}
int xs_fileno(void *store) { return events; }
void *xs_read(void *store, uint32_t transaction, const char *path, unsigned int *length) {
  unsigned int number;
  int end = 0;
  if (sscanf(path, "/local/domain/%u/name%n", &number, &end) == 1 && end == (int)strlen(path) && number >= 1 && number <= count) {
    uint32_t version;
    memcpy(&version, domains + count * SIZE + (number - 1) * 4, sizeof version);
    char *name = NULL;
    int size = asprintf(&name, "guest-%u-%u", number, version);
    *length = (unsigned int)size;
    return name;
  }
  return errno = ENOENT, NULL;
}
char **xs_directory(void *store, uint32_t transaction, const char *path, unsigned int *number) { return errno = ENOENT, NULL; }
bool xs_write(void *store, uint32_t transaction, const char *path, const void *data, unsigned int length) { return true; }
bool xs_set_permissions(void *store, uint32_t transaction, const char *path, void *permissions, unsigned int number) { return true; }
uint32_t xs_transaction_start(void *store) { return 1; }
bool xs_transaction_end(void *store, uint32_t transaction, bool abandoned) { return true; }
bool xs_watch(void *store, const char *path, const char *token) { return true; }
char **xs_check_watch(void *store) {
  char *end;
  while ((end = memchr(pending, '\n', filled)) == NULL) {
    ssize_t got = read(events, pending + filled, sizeof pending - filled);
    if (got <= 0) return errno = EAGAIN, NULL;
    filled += (size_t)got;
  }
  *end = 0;
  size_t length = (size_t)(end - pending) + 1;
  char **event = malloc(2 * sizeof *event + length);
  event[0] = (char *)(event + 2);
  event[1] = event[0];
  memcpy(event[0], pending, length);
  memmove(pending, end + 1, filled - length);
  filled -= length;
  return event;
}

// The files by which a program sees where it runs.

int open(const char *path, int flags, ...) {
  static int (*next)(const char *, int, ...);
  if (next == NULL) next = dlsym(RTLD_NEXT, "open");
  va_list arguments;
  va_start(arguments, flags);
  int mode = va_arg(arguments, int);
  va_end(arguments);
  char other[4096];
  if (strncmp(path, "/sys/hypervisor/", 16) == 0 || strncmp(path, "/proc/xen/", 10) == 0) {
    path_of(other, sizeof other, path + 1);
    path = other;
  }
  return next(path, flags, mode);
}
