// All of libxenctrl. Its ABI is not stable: each release that is known has a line in `releases`, with the library's name and the layout of
// the one structure that is read. To add a release, print these numbers with its own headers, and try Tests/Rig with it.
#include "include/CXen.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 1024
#define XENVER_VERSION 0
#define SHUTDOWN_POWEROFF 0

struct release {
  uint32_t major, minor;
  const char *library;
  // sizeof(xc_domaininfo_t), and the offsets of its fields.
  size_t size, domain, flags, cpu_time, handle;
};

static const struct release releases[] = {
  {4, 17, "libxenctrl.so.4.17", 112, 0, 4, 56, 76},
};

const char *vmfence_xen_known_releases(void) { return "4.17"; }

static const struct release *release_of(uint32_t major, uint32_t minor) {
  for (size_t i = 0; i < sizeof releases / sizeof *releases; i++)
    if (releases[i].major == major && releases[i].minor == minor) return &releases[i];
  return NULL;
}

int vmfence_xen_knows(uint32_t major, uint32_t minor) { return release_of(major, minor) != NULL; }

struct vmfence_xen {
  const struct release *release;
  void *library;
  void *interface;
  int (*close)(void *);
  int (*list)(void *, uint32_t, unsigned int, void *);
  int (*pause)(void *, uint32_t);
  int (*unpause)(void *, uint32_t);
  int (*shutdown)(void *, uint32_t, int);
  int (*destroy)(void *, uint32_t);
  uint8_t *buffer;
};

void vmfence_xen_close(struct vmfence_xen *xen) {
  if (xen == NULL) return;
  if (xen->interface != NULL) xen->close(xen->interface);
  if (xen->library != NULL) dlclose(xen->library);
  free(xen->buffer);
  free(xen);
}

struct vmfence_xen_opening vmfence_xen_open(uint32_t major, uint32_t minor) {
  struct vmfence_xen_opening opening = {.major = major, .minor = minor};
  const struct release *release = release_of(major, minor);
  if (release == NULL) {
    opening.problem = VMFENCE_XEN_UNKNOWN_RELEASE;
    return opening;
  }
  opening.problem = VMFENCE_XEN_NO_LIBRARY;
  struct vmfence_xen *xen = calloc(1, sizeof *xen);
  if (xen == NULL) abort();
  xen->release = release;
  xen->library = dlopen(release->library, RTLD_NOW | RTLD_LOCAL);
  if (xen->library == NULL) goto fail;
  void *(*open)(void *, void *, unsigned) = dlsym(xen->library, "xc_interface_open");
  int (*version)(void *, int, void *) = dlsym(xen->library, "xc_version");
  xen->close = dlsym(xen->library, "xc_interface_close");
  xen->list = dlsym(xen->library, "xc_domain_getinfolist");
  xen->pause = dlsym(xen->library, "xc_domain_pause");
  xen->unpause = dlsym(xen->library, "xc_domain_unpause");
  xen->shutdown = dlsym(xen->library, "xc_domain_shutdown");
  xen->destroy = dlsym(xen->library, "xc_domain_destroy");
  if (!open || !version || !xen->close || !xen->list || !xen->pause || !xen->unpause || !xen->shutdown || !xen->destroy)
    goto fail;
  xen->buffer = calloc(CHUNK, release->size);
  if (xen->buffer == NULL) abort();
  opening.problem = VMFENCE_XEN_UNREACHABLE;
  errno = 0;
  xen->interface = open(NULL, NULL, 0);
  if (xen->interface == NULL) {
    opening.error = errno;
    goto fail;
  }
  // The hypervisor's own word: major in the upper, minor in the lower half. It has to agree with the layout.
  int running = version(xen->interface, XENVER_VERSION, NULL);
  if (running < 0) {
    opening.error = errno;
    goto fail;
  }
  if ((uint32_t)running >> 16 != major || ((uint32_t)running & 0xFFFF) != minor) {
    opening.problem = VMFENCE_XEN_UNKNOWN_RELEASE;
    opening.major = (uint32_t)running >> 16;
    opening.minor = (uint32_t)running & 0xFFFF;
    goto fail;
  }
  opening.problem = VMFENCE_XEN_OPENED;
  opening.xen = xen;
  return opening;
fail:
  vmfence_xen_close(xen);
  return opening;
}

int vmfence_xen_list(
  struct vmfence_xen *xen, uint32_t first, struct vmfence_xen_domain *domains, uint32_t capacity) {
  const struct release *release = xen->release;
  if (capacity > CHUNK) capacity = CHUNK;
  int count = xen->list(xen->interface, first, capacity, xen->buffer);
  if (count < 0) return errno ? -errno : -EIO;
  if ((uint32_t)count > capacity) return -EPROTO;
  for (int i = 0; i < count; i++) {
    const uint8_t *info = xen->buffer + (size_t)i * release->size;
    uint16_t domid;
    memcpy(&domid, info + release->domain, sizeof domid);
    domains[i].domid = domid;
    memcpy(&domains[i].flags, info + release->flags, sizeof domains[i].flags);
    memcpy(&domains[i].cpu_time, info + release->cpu_time, sizeof domains[i].cpu_time);
    memcpy(domains[i].uuid, info + release->handle, sizeof domains[i].uuid);
  }
  return count;
}

// xc_… return -1 with errno, some the negative of an error number.
static int result(int returned) {
  if (returned >= 0) return 0;
  return returned == -1 && errno ? -errno : returned;
}

int vmfence_xen_pause(struct vmfence_xen *xen, uint32_t domid) { return result(xen->pause(xen->interface, domid)); }
int vmfence_xen_unpause(struct vmfence_xen *xen, uint32_t domid) { return result(xen->unpause(xen->interface, domid)); }
int vmfence_xen_power_off(struct vmfence_xen *xen, uint32_t domid) {
  return result(xen->shutdown(xen->interface, domid, SHUTDOWN_POWEROFF));
}
int vmfence_xen_destroy(struct vmfence_xen *xen, uint32_t domid) { return result(xen->destroy(xen->interface, domid)); }
