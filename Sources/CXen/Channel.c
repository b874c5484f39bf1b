// libxengnttab and libxenevtchn (xengnttab.h, xenevtchn.h), whose ABIs are stable: pages that guests granted, and the events that come with them.
#include "include/CXen.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

struct vmfence_grants {
  void *library;
  void *handle;
  int (*close)(void *);
  void *(*map)(void *, uint32_t, uint32_t, int);
  int (*unmap)(void *, void *, uint32_t);
};

void vmfence_grants_close(struct vmfence_grants *grants) {
  if (grants == NULL) return;
  if (grants->handle != NULL) grants->close(grants->handle);
  if (grants->library != NULL) dlclose(grants->library);
  free(grants);
}

struct vmfence_grants *vmfence_grants_open(int *error) {
  struct vmfence_grants *grants = calloc(1, sizeof *grants);
  if (grants == NULL) abort();
  *error = ELIBACC;
  grants->library = dlopen("libxengnttab.so.1", RTLD_NOW | RTLD_LOCAL);
  if (grants->library == NULL) goto fail;
  void *(*open)(void *, unsigned) = dlsym(grants->library, "xengnttab_open");
  grants->close = dlsym(grants->library, "xengnttab_close");
  grants->map = dlsym(grants->library, "xengnttab_map_grant_ref");
  grants->unmap = dlsym(grants->library, "xengnttab_unmap");
  if (!open || !grants->close || !grants->map || !grants->unmap) goto fail;
  errno = 0;
  grants->handle = open(NULL, 0);
  if (grants->handle == NULL) {
    *error = errno ? errno : ENOENT;
    goto fail;
  }
  *error = 0;
  return grants;
fail:
  vmfence_grants_close(grants);
  return NULL;
}

static int failure(void) { return errno ? -errno : -EIO; }

int vmfence_grants_map(struct vmfence_grants *grants, uint32_t domid, uint32_t reference, void **page) {
  errno = 0;
  *page = grants->map(grants->handle, domid, reference, PROT_READ | PROT_WRITE);
  return *page == NULL ? failure() : 0;
}

int vmfence_grants_unmap(struct vmfence_grants *grants, void *page) {
  errno = 0;
  return grants->unmap(grants->handle, page, 1) == 0 ? 0 : failure();
}

struct vmfence_events {
  void *library;
  void *handle;
  int (*close)(void *);
  int (*fileno)(void *);
  int (*bind)(void *, uint32_t, uint32_t);
  int (*unbind)(void *, uint32_t);
  int (*notify)(void *, uint32_t);
  int (*pending)(void *);
  int (*unmask)(void *, uint32_t);
};

void vmfence_events_close(struct vmfence_events *events) {
  if (events == NULL) return;
  if (events->handle != NULL) events->close(events->handle);
  if (events->library != NULL) dlclose(events->library);
  free(events);
}

struct vmfence_events *vmfence_events_open(int *error) {
  struct vmfence_events *events = calloc(1, sizeof *events);
  if (events == NULL) abort();
  *error = ELIBACC;
  events->library = dlopen("libxenevtchn.so.1", RTLD_NOW | RTLD_LOCAL);
  if (events->library == NULL) goto fail;
  void *(*open)(void *, unsigned) = dlsym(events->library, "xenevtchn_open");
  events->close = dlsym(events->library, "xenevtchn_close");
  events->fileno = dlsym(events->library, "xenevtchn_fd");
  events->bind = dlsym(events->library, "xenevtchn_bind_interdomain");
  events->unbind = dlsym(events->library, "xenevtchn_unbind");
  events->notify = dlsym(events->library, "xenevtchn_notify");
  events->pending = dlsym(events->library, "xenevtchn_pending");
  events->unmask = dlsym(events->library, "xenevtchn_unmask");
  if (!open || !events->close || !events->fileno || !events->bind || !events->unbind || !events->notify || !events->pending ||
      !events->unmask)
    goto fail;
  errno = 0;
  events->handle = open(NULL, 0);
  if (events->handle == NULL) {
    *error = errno ? errno : ENOENT;
    goto fail;
  }
  *error = 0;
  return events;
fail:
  vmfence_events_close(events);
  return NULL;
}

int vmfence_events_descriptor(struct vmfence_events *events) { return events->fileno(events->handle); }

int vmfence_events_bind(struct vmfence_events *events, uint32_t domid, uint32_t port) {
  errno = 0;
  int local = events->bind(events->handle, domid, port);
  return local < 0 ? failure() : local;
}

int vmfence_events_unbind(struct vmfence_events *events, uint32_t port) {
  errno = 0;
  return events->unbind(events->handle, port) == 0 ? 0 : failure();
}

int vmfence_events_notify(struct vmfence_events *events, uint32_t port) {
  errno = 0;
  return events->notify(events->handle, port) == 0 ? 0 : failure();
}

int vmfence_events_take(struct vmfence_events *events) {
  errno = 0;
  int port = events->pending(events->handle);
  return port < 0 ? failure() : port;
}

int vmfence_events_unmask(struct vmfence_events *events, uint32_t port) {
  errno = 0;
  return events->unmask(events->handle, port) == 0 ? 0 : failure();
}
