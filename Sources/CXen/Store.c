// libxenstore (libxenstore.so.4, xenstore.h). What it returns is its own memory, of any length: it is copied within the caller's limits
// and freed here.
#include "include/CXen.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WATCH_PATH 0

#define PERMISSION_NONE 0
#define PERMISSION_READ 1

// struct xs_permissions of xenstore_lib.h.
struct permission {
  unsigned int domid;
  unsigned int permission;
};

struct vmfence_xenstore {
  void *library;
  void *handle;
  void (*close)(void *);
  int (*fileno)(void *);
  void *(*read)(void *, uint32_t, const char *, unsigned int *);
  char **(*directory)(void *, uint32_t, const char *, unsigned int *);
  bool (*write)(void *, uint32_t, const char *, const void *, unsigned int);
  bool (*remove)(void *, uint32_t, const char *);
  bool (*permit)(void *, uint32_t, const char *, struct permission *, unsigned int);
  bool (*watch)(void *, const char *, const char *);
  char **(*check)(void *);
};

void vmfence_xenstore_close(struct vmfence_xenstore *store) {
  if (store == NULL) return;
  if (store->handle != NULL) store->close(store->handle);
  if (store->library != NULL) dlclose(store->library);
  free(store);
}

// By itself xs_open falls back to the kernel's way to xenstored when its socket does not answer, and no flag keeps it from that. There a question waits for
// ever when xenstored is gone, in a system call that not even a signal ends. That way is right only on a host whose xenstored runs in a domain of its own,
// where there is no socket: where there is one, it is named to libxenstore as both ways. Before `main`, since the environment may not change beside
// threads that read it (setenv(3)); a name that was given from outside stays.
__attribute__((constructor)) static void keep_to_socket(void) {
  static const char usual[] = "/var/run/xenstored/socket";
  if (access(usual, F_OK) == 0) setenv("XENSTORED_PATH", usual, 0);
}

struct vmfence_xenstore *vmfence_xenstore_open(int *error) {
  struct vmfence_xenstore *store = calloc(1, sizeof *store);
  if (store == NULL) abort();
  *error = ELIBACC;
  store->library = dlopen("libxenstore.so.4", RTLD_NOW | RTLD_LOCAL);
  if (store->library == NULL) goto fail;
  void *(*open)(unsigned long) = dlsym(store->library, "xs_open");
  store->close = dlsym(store->library, "xs_close");
  store->fileno = dlsym(store->library, "xs_fileno");
  store->read = dlsym(store->library, "xs_read");
  store->directory = dlsym(store->library, "xs_directory");
  store->write = dlsym(store->library, "xs_write");
  store->remove = dlsym(store->library, "xs_rm");
  store->permit = dlsym(store->library, "xs_set_permissions");
  store->watch = dlsym(store->library, "xs_watch");
  store->check = dlsym(store->library, "xs_check_watch");
  if (!open || !store->close || !store->fileno || !store->read || !store->directory || !store->write || !store->remove ||
      !store->permit || !store->watch || !store->check)
    goto fail;
  errno = 0;
  store->handle = open(0);
  if (store->handle == NULL) {
    *error = errno ? errno : ENOENT;
    goto fail;
  }
  *error = 0;
  return store;
fail:
  vmfence_xenstore_close(store);
  return NULL;
}

int vmfence_xenstore_descriptor(struct vmfence_xenstore *store) { return store->fileno(store->handle); }

static int failure(void) { return errno ? -errno : -EIO; }

ssize_t vmfence_xenstore_read(struct vmfence_xenstore *store, const char *path, void *bytes, size_t capacity) {
  unsigned int length = 0;
  errno = 0;
  void *value = store->read(store->handle, 0, path, &length);
  if (value == NULL) return failure();
  memcpy(bytes, value, length < capacity ? length : capacity);
  free(value);
  return (ssize_t)length;
}

ssize_t vmfence_xenstore_list(
  struct vmfence_xenstore *store, const char *path, char *names, size_t capacity, uint32_t *count) {
  unsigned int number = 0;
  size_t used = 0;
  errno = 0;
  char **entries = store->directory(store->handle, 0, path, &number);
  if (entries == NULL) return failure();
  *count = number;
  for (unsigned int i = 0; i < number; i++) {
    size_t length = strlen(entries[i]) + 1;
    if (length > capacity - used) break;
    memcpy(names + used, entries[i], length);
    used += length;
  }
  free(entries);
  return (ssize_t)used;
}

int vmfence_xenstore_write(struct vmfence_xenstore *store, const char *path, const void *bytes, uint32_t count) {
  errno = 0;
  return store->write(store->handle, 0, path, bytes, count) ? 0 : failure();
}

int vmfence_xenstore_watch(struct vmfence_xenstore *store, const char *path, const char *token) {
  errno = 0;
  return store->watch(store->handle, path, token) ? 0 : failure();
}

ssize_t vmfence_xenstore_event(struct vmfence_xenstore *store, char *path, size_t capacity) {
  errno = 0;
  char **event = store->check(store->handle);
  if (event == NULL) return failure();
  size_t length = strlen(event[WATCH_PATH]);
  memcpy(path, event[WATCH_PATH], length < capacity ? length : capacity);
  free(event);
  return (ssize_t)length;
}

int vmfence_xenstore_let_read(struct vmfence_xenstore *store, const char *path, uint32_t domid) {
  // The first names the owner, and what everybody else may do.
  struct permission permissions[] = {{0, PERMISSION_NONE}, {domid, PERMISSION_READ}};
  errno = 0;
  return store->permit(store->handle, 0, path, permissions, 2) ? 0 : failure();
}

int vmfence_xenstore_remove(struct vmfence_xenstore *store, const char *path) {
  errno = 0;
  return store->remove(store->handle, 0, path) ? 0 : failure();
}
